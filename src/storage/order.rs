//! The order in which a session's queue goes on after a start.

use crate::ports::{MessageId, Seq};

/// Puts messages of one origin, as told by `id_of`, into the order of their IDs, each of them at a place that one of them
/// had: queues keep the order in which messages came, but an origin's may have come late (they were moved, or sent again).
/// Messages without an ID stay where they are.
pub(super) fn order_by_origin(pending: &mut [Seq], id_of: impl Fn(Seq) -> Option<MessageId>) {
    let named = pending.iter().enumerate().filter_map(|(at, seq)| Some((id_of(*seq)?, at, *seq)));
    let (mut places, mut messages): (Vec<_>, Vec<_>) =
        named.map(|(id, at, seq)| ((id.origin, at), (id, seq))).unzip();
    if messages.is_sorted() {
        return;
    }
    places.sort_unstable();
    messages.sort_unstable();
    // Both are grouped by origin now, in groups of the same sizes.
    for ((_, at), (_, seq)) in places.into_iter().zip(messages) {
        if let Some(place) = pending.get_mut(at) {
            *place = seq;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(ids: &[(u64, u64)]) -> Vec<Seq> {
        let mut pending: Vec<Seq> = (0..ids.len() as Seq).collect();
        order_by_origin(&mut pending, |seq| {
            let (origin, seq) = ids[seq as usize];
            (origin != 0).then_some(MessageId { origin, seq })
        });
        pending
    }

    #[test]
    fn each_origin_is_put_in_order_at_its_own_places() {
        assert_eq!(ordered(&[]), [] as [Seq; 0]);
        assert_eq!(ordered(&[(0, 9), (0, 8), (0, 7)]), [0, 1, 2], "without IDs");
        assert_eq!(ordered(&[(1, 1), (1, 2), (2, 1), (1, 3)]), [0, 1, 2, 3]);
        assert_eq!(ordered(&[(2, 5), (1, 7), (0, 0), (2, 4), (1, 6), (1, 5)]), [3, 5, 2, 0, 4, 1]);
    }
}
