//! How long a fuzz driver runs, and how a failure is replayed. Shared by the drivers here and by those beside the code that they drive.
//!
//! `BERTH_FUZZ_SECONDS` says for how long. A failure prints its seed; `BERTH_FUZZ_SEED` replays it.

use super::random::Random;
use berth::clock;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Seconds that a driver runs unless it is told.
const SECONDS: u64 = 5;

/// Inputs between two looks at the clock.
const LOOK: u64 = 256;

fn env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Has `check` look at one input after the other. Each has a seed of its own, so that one number replays it.
pub fn run<I: Debug>(input: impl Fn(&mut Random) -> I, check: impl Fn(&I)) {
    let start = clock::now();
    let end = start.plus_secs(env("BERTH_FUZZ_SECONDS").unwrap_or(SECONDS));
    let begin = env("BERTH_FUZZ_SEED").unwrap_or_else(|| start.as_millis() << 20);
    let mut seed = begin;
    loop {
        let made = input(&mut Random(seed));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&made))) {
            eprintln!("BERTH_FUZZ_SEED={seed} fails with {made:02x?}");
            resume_unwind(panic);
        }
        seed = seed.wrapping_add(1);
        if seed.is_multiple_of(LOOK) && clock::now() >= end {
            break;
        }
    }
    println!("{} inputs from BERTH_FUZZ_SEED={begin}", seed.wrapping_sub(begin));
}
