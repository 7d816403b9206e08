//! Proves from which size on the copy engine is chosen.

use super::*;

fn check(load: &[(u64, f64, f64)], expected: Option<u64>) {
    let trial = |&(bytes, batched, kernel): &(u64, f64, f64)| Trial {
        direction: Direction::Load,
        bytes,
        batched,
        kernel,
    };
    let trials = load.iter().map(trial).collect();
    let calibration = Calibration::from_trials(trials, Duration::ZERO);
    for bytes in [1, 16, 64, 256] {
        let batched = expected.is_some_and(|from| bytes >= from);
        assert_eq!(calibration.is_batched(Direction::Load, bytes), batched, "{bytes}");
        assert!(!calibration.is_batched(Direction::Save, bytes));
    }
}

#[test]
fn the_copy_engine_is_chosen_from_where_it_stays_fast_enough() {
    check(&[(16, 12.0, 49.0), (64, 42.0, 51.0), (256, 51.0, 51.5)], Some(64));
    check(&[(16, 50.0, 50.0), (64, 20.0, 51.0), (256, 55.0, 51.5)], Some(256));
    check(&[(16, 34.0, 50.0), (64, 60.0, 51.0), (256, 55.0, 51.5)], Some(16));
    check(&[(16, 5.0, 50.0), (64, 42.0, 51.0), (256, 25.0, 51.5)], None);
    check(&[], None);
}

#[test]
fn a_save_leaves_the_multiprocessors_alone_though_it_takes_longer() {
    let trial = |(direction, batched)| Trial { direction, bytes: 16, batched, kernel: 50.0 };
    let of = |batched: f64| {
        let trials =
            [Direction::Load, Direction::Save].map(|direction| trial((direction, batched)));
        Calibration::from_trials(trials.into(), Duration::ZERO)
    };
    let slow = of(15.0);
    assert!(slow.is_batched(Direction::Save, 16) && !slow.is_batched(Direction::Load, 16));
    assert!(!of(4.0).is_batched(Direction::Save, 16));
}
