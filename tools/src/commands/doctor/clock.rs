//! Whether the clock is right enough for leases and logs, and whether it jumps.

use super::Check;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::Duration;

const NAME: &str = "clock";
/// The start of 2025: this build is younger than that.
const EARLIEST: i64 = 1_735_689_600;
/// The start of 2100.
const LATEST: i64 = 4_102_444_800;
/// A clock that is disciplined drifts far less while this command runs.
const STEP: i128 = 100_000_000;

/// The two clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    real: i128,
    steady: i128,
}

impl Watch {
    pub(super) fn start() -> Self {
        let nanoseconds =
            |time: Timespec| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        Self {
            real: nanoseconds(clock_gettime(ClockId::Realtime)),
            steady: nanoseconds(clock_gettime(ClockId::Boottime)),
        }
    }

    /// What the time since says.
    pub(super) fn check(self) -> Vec<Check> {
        judge(self, Self::start())
    }
}

fn judge(before: Watch, after: Watch) -> Vec<Check> {
    let advice = "let one time service keep it (chrony, systemd-timesyncd), by slewing";
    let seconds = i64::try_from(after.real / 1_000_000_000).unwrap_or(i64::MAX);
    if !(EARLIEST..LATEST).contains(&seconds) {
        return vec![Check::wrong(NAME, format!("{seconds} s since 1970 cannot be now"), advice)];
    }
    let step = (after.real - before.real) - (after.steady - before.steady);
    if step.abs() >= STEP {
        let found = format!("jumped by {} ms while this ran", step / 1_000_000);
        return vec![Check::warning(NAME, found, advice)];
    }
    let took = u64::try_from(after.steady - before.steady).unwrap_or(0);
    let took = Duration::from_nanos(took).as_secs_f64();
    vec![Check::ok(NAME, format!("plausible, no jump within {took:.1} s"))]
}

#[cfg(test)]
mod tests {
    //! Proves that a clock that is wrong, or jumps, is told.

    use super::super::State;
    use super::*;

    #[test]
    fn a_jump_and_an_impossible_time_are_told() {
        let second = 1_000_000_000;
        let now = i128::from(EARLIEST) * second;
        let start = Watch { real: now, steady: 5 * second };
        let check = |real: i128, state| {
            let checks = judge(start, Watch { real, steady: 6 * second });
            assert_eq!(checks[0].state, state, "{checks:?}");
        };
        check(now + second, State::Ok);
        check(now + 3 * second, State::Warning);
        check(now - second / 2 + second, State::Warning);
        check(7, State::Wrong);
    }
}
