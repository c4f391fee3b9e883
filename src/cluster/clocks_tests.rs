//! Clocks that differ, come and go, and what is made and said of them.

use super::*;

/// Another process: its incarnation, its clock, and the cluster's time by its word.
fn other(incarnation: Incarnation, ahead_ms: i64, cluster_ahead_ms: Option<i64>) -> Other {
    let clock = PeerClock { incarnation, ahead_ms, error_ms: 1, cluster_ahead_ms, cluster_young_ms: 0 };
    Other { node: format!("n{incarnation}").into(), incarnation, clock: LinkClock::Measured(clock) }
}

fn without_clock(incarnation: Incarnation, clock: LinkClock) -> Other {
    Other { clock, ..other(incarnation, 0, None) }
}

fn view(me: Incarnation, others: Vec<Other>) -> View {
    View { me: (format!("n{me}").into(), me), others, missing: false }
}

#[test]
fn the_median_is_the_lower_one_of_an_even_number() {
    // The own clock is 0.
    let cases: &[(&[i64], i64)] = &[
        (&[], 0),
        (&[30], 0),
        (&[-30], -30),
        (&[30, 1], 1),
        (&[-30, 1], 0),
        (&[3_600, 3_600], 3_600),
        (&[1, 2, 3], 1),
        (&[-9, -8, 1, 2], 0),
    ];
    for (others, expected) in cases {
        let others = others.iter().enumerate().map(|(i, ahead)| other(i as u64 + 2, *ahead, None)).collect();
        assert_eq!(median(view(1, others).clocks()).0, *expected);
    }
}

#[test]
fn a_process_makes_the_time_once_it_has_measured_or_need_not_wait() {
    let both = || vec![other(2, 30_000, None), other(3, 10, None)];
    let unmeasured = |incarnation| without_clock(incarnation, LinkClock::Unmeasured);
    let untold = |incarnation| without_clock(incarnation, LinkClock::Untold);
    // Who is there, and the time that is made at once; none if that has to wait.
    let cases: Vec<(&str, View, Option<i64>)> = vec![
        ("alone", view(1, vec![]), Some(0)),
        ("the oldest", view(1, both()), Some(10)),
        ("not the oldest", view(9, both()), None),
        ("one is not measured", view(1, vec![other(2, 30, None), unmeasured(3)]), None),
        ("one does not tell", view(2, vec![untold(1), other(3, -30, None)]), Some(-30)),
        ("nodes are gone", View { missing: true, ..view(1, both()) }, None),
        ("an older one knows", view(9, vec![other(2, 30_000, Some(-29_000)), unmeasured(3)]), Some(1_000)),
        (
            "a younger one knows",
            view(1, vec![other(2, 30_000, Some(-29_000)), other(3, 0, None)]),
            Some(1_000),
        ),
        (
            "the oldest of those that know",
            view(9, vec![other(3, 0, Some(5)), other(2, 0, Some(7)), other(1, 0, None)]),
            Some(7),
        ),
        (
            "a clock of an earlier process",
            view(1, vec![Other { incarnation: 3, ..other(2, 50, None) }]),
            None,
        ),
    ];
    for (what, view, expected) in cases {
        let mut reckoning = Reckoning::default();
        assert_eq!(reckoning.look(&view, Time(1_000)), None);
        let made = reckoning.known.then(|| reckoning.ahead_ms());
        assert_eq!(made, expected, "{what}");
        // In the end it goes without those that it waits for.
        reckoning.look(&view, Time(1_000 + PATIENCE_MS - 1));
        assert_eq!(reckoning.known, expected.is_some(), "{what}");
        reckoning.look(&view, Time(1_000 + PATIENCE_MS));
        assert!(reckoning.known, "{what}");
    }
}

#[test]
fn the_time_goes_on_whoever_comes_and_goes() {
    let mut reckoning = Reckoning::default();
    let mut at = 1_000;
    // Steps: who is there, for how long in looks, and where the time is then.
    let steps: Vec<(&str, View, u64, i64)> = vec![
        ("alone", view(5, vec![]), 1, 0),
        ("with one that is an hour behind", view(5, vec![other(6, -3_600_000, Some(3_600_000))]), 100, -100),
        ("alone again", view(5, vec![]), 200, 0),
        ("with one that is an hour ahead", view(5, vec![other(7, 3_600_000, Some(-3_600_000))]), 100, 0),
        // Older ones are followed, if need be at once.
        ("an older one is measured", view(5, vec![other(2, 400, Some(0))]), 10, 400),
        ("an older one with another time", view(5, vec![other(1, 50_000, Some(0))]), 1, 50_000),
        ("that one is gone", view(5, vec![]), 1, 49_999),
    ];
    for (what, view, looks, expected) in steps {
        for _ in 0..looks {
            let before = reckoning.ahead_ms();
            let jumped = reckoning.look(&view, Time(at));
            let moved = reckoning.ahead_ms() - before;
            assert!(jumped == Some(moved) || jumped.is_none() && moved.abs() <= 50, "{what}: by {moved}");
            at += LOOK_MS;
        }
        assert_eq!(reckoning.ahead_ms(), expected, "{what}");
    }
}

#[test]
fn a_young_time_of_one_process_gives_way_to_three_clocks() {
    let three = || view(1, vec![other(2, -30_000, None), other(3, -30_001, None)]);
    // When the others come after the time was made, and where it is then.
    for (after, expected) in [(YOUNG_MS - 1, -30_000), (YOUNG_MS, -60)] {
        let mut reckoning = Reckoning::default();
        reckoning.look(&view(1, vec![]), Time(1));
        let jumped = reckoning.look(&three(), Time(1 + after));
        assert_eq!(jumped, (expected < -1_000).then_some(expected));
        assert_eq!(reckoning.ahead_ms(), expected);
    }
    // One that was taken over from others is theirs.
    let mut reckoning = Reckoning::default();
    reckoning.look(&view(3, vec![other(2, 0, Some(0))]), Time(1));
    let others = vec![other(4, -30_000, None), other(5, -30_000, None)];
    assert_eq!(reckoning.look(&view(3, others), Time(1_001)), None);
    assert_eq!(reckoning.ahead_ms(), -1);
}

/// A process that registered later makes the time, since the older one is not there yet, and its clock is an hour ahead. The older one keeps
/// the time from then on, or outlives it, and a third clock comes.
#[test]
fn a_time_is_young_whoever_keeps_it() {
    let made = |young_ms| Other {
        clock: LinkClock::Measured(PeerClock {
            incarnation: 3,
            ahead_ms: 3_600_000,
            error_ms: 1,
            cluster_ahead_ms: Some(0),
            cluster_young_ms: young_ms,
        }),
        ..other(3, 0, None)
    };
    // Who this is, for how long the time is young by the word of its maker, whether that goes on; and where the time is in the end.
    for (me, young_ms, stays, expected) in [
        (2, 60_000, true, 0),
        (2, 60_000, false, 0),
        (2, 0, true, 3_599_999),
        (2, 1_000, true, 3_599_999),
        (4, 60_000, true, 3_600_000),
        (4, 60_000, false, 0),
        (4, 0, false, 3_599_999),
    ] {
        let mut reckoning = Reckoning::default();
        reckoning.look(&view(me, vec![made(young_ms)]), Time(1));
        assert_eq!((reckoning.known, reckoning.ahead_ms()), (true, 3_600_000));
        let mut others = vec![other(8, 5, None), other(9, -5, None)];
        others.extend(stays.then(|| made(young_ms.saturating_sub(1_000))));
        reckoning.look(&view(me, others), Time(1_001));
        assert_eq!(reckoning.ahead_ms(), expected, "{me}, {young_ms}, {stays}");
    }
}

#[test]
fn a_difference_is_said_once_per_change() {
    let limit = 2_000;
    let mut told = Told::default();
    // By how much the clocks of n2 and of n3 are ahead, and what is said of which.
    let looks: &[(i64, i64, &str)] = &[
        (0, 0, ""),
        (2_001, 0, ""),
        (2_003, 0, "n2 +2.0s"),
        (2_500, 0, ""),
        (1_900, 0, ""),
        (2_500, 0, ""),
        (30_000, 0, "n2 +30.0s"),
        (30_000, -3_600_000, "n3 -3600.0s"),
        (31_000, -3_600_000, ""),
        (1_800, -3_600_000, "n2 right"),
        (30_000, 0, "n2 +30.0s, n3 right"),
    ];
    for (n2, n3, expected) in looks {
        // Two more with the own clock, so that it is the median.
        let mut others = vec![other(2, *n2, None), other(3, *n3, None)];
        others.extend((4..8).map(|i| Other { node: format!("n{i}").into(), ..other(i, 0, None) }));
        let mut view = view(1, others);
        view.others[2..].iter_mut().for_each(|other| {
            other.clock = LinkClock::Measured(PeerClock {
                incarnation: other.incarnation,
                ahead_ms: 0,
                error_ms: 0,
                cluster_ahead_ms: None,
                cluster_young_ms: 0,
            });
        });
        let said: Vec<String> = told
            .look(&view.differences(limit), limit)
            .into_iter()
            .map(|news| match news {
                News::Apart(c) => format!("{} {}", c.node, seconds(c.difference_ms)),
                News::Right(c) => format!("{} right", c.node),
            })
            .collect();
        assert_eq!(said.join(", "), *expected, "{n2} and {n3}");
    }
    let gone = view(1, vec![]);
    assert_eq!(told.look(&gone.differences(limit), limit), []);
    let back = view(1, vec![other(2, 30_000, None)]);
    assert_eq!(told.look(&back.differences(limit), limit).len(), 1, "who comes back is new");
}

#[test]
fn clocks_are_compared_with_their_median() {
    let view =
        view(1, vec![other(2, 3_600_000, None), other(3, 4, None), without_clock(4, LinkClock::Untold)]);
    let clocks = view.differences(2_000);
    let shown: Vec<_> =
        clocks.iter().map(|c| (&*c.node, c.ahead_ms, c.difference_ms, c.error_ms, c.apart)).collect();
    assert_eq!(
        shown,
        [("n1", 0, -4, 1, false), ("n2", 3_600_000, 3_599_996, 2, true), ("n3", 4, 0, 2, false)]
    );
}
