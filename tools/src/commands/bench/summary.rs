//! Many measured values, told by a few.

use std::time::Duration;

/// The value that a share `quantile` of `values` does not exceed; 0 of none.
pub(super) fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (1..=sorted.len()).find(|&rank| share(rank, sorted.len()) >= quantile);
    rank.map_or(0.0, |rank| sorted[rank - 1])
}

#[expect(clippy::cast_precision_loss, reason = "counts of samples are small")]
fn share(rank: usize, count: usize) -> f64 {
    rank as f64 / count as f64
}

pub(super) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

pub(super) fn micros(latencies: &[Duration]) -> Vec<f64> {
    latencies.iter().map(|latency| latency.as_secs_f64() * 1e6).collect()
}

/// Three digits behind the point are more than any of these measurements is good for.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Processor time of all threads of this process, in seconds.
pub(super) fn processor_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(spent.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(spent.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos).as_secs_f64()
}

#[cfg(test)]
mod tests {
    //! Proves that quantiles are values that were measured.

    use super::*;

    #[test]
    fn a_quantile_is_the_least_value_that_reaches_its_share() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert!((quantile(&values, 0.99) - 198.0).abs() < f64::EPSILON);
        assert!((median(&values) - 100.0).abs() < f64::EPSILON);
        assert!((median(&[3.0]) - 3.0).abs() < f64::EPSILON);
        assert!(median(&[]).abs() < f64::EPSILON);
    }
}
