//! The report as people read it.

use super::report::{Percentiles, Report};
use bytesize::ByteSize;
use std::fmt;

/// Prints what was measured, and what each number means.
pub(super) struct Table<'a>(pub(super) &'a Report);

impl fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let ended = if report.interrupted { ", then interrupted" } else { "" };
        writeln!(
            out,
            "{} requests with {} input tokens in {:.1} s{ended}",
            grouped(report.requests),
            grouped(report.input_tokens),
            report.elapsed_s,
        )?;
        writeln!(out)?;
        self.cache(out)?;
        self.speed(out)?;
        self.trouble(out)?;
        self.summary(out)
    }
}

impl Table<'_> {
    fn cache(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        row(out, "hit rate", |out| {
            write!(
                out,
                "{:.1} % of the input tokens were in the cache; an unlimited one has {:.1} %",
                100.0 * report.token_hit_rate,
                100.0 * report.ideal_token_hit_rate,
            )
        })?;
        row(out, "loaded", |out| {
            write!(
                out,
                "{} of {} blocks asked for ({}): {} from SSD, {} from memory",
                grouped(report.blocks_hit_host + report.blocks_hit_ssd + report.blocks_hit_peer),
                grouped(report.blocks_asked),
                ByteSize(report.loaded_bytes),
                grouped(report.blocks_hit_ssd),
                grouped(report.blocks_hit_host),
            )?;
            match report.nodes.len() {
                0 => Ok(()),
                _ => write!(out, ", {} from peers", grouped(report.blocks_hit_peer)),
            }
        })?;
        row(out, "saved", |out| {
            write!(
                out,
                "{} blocks ({}), {} refused",
                grouped(report.blocks_saved),
                ByteSize(report.saved_bytes),
                grouped(report.blocks_refused),
            )
        })?;
        for (number, node) in (1..).zip(&report.nodes) {
            row(out, "", |out| {
                let (requests, saved) = (grouped(node.requests), grouped(node.blocks_saved));
                let percent = 100.0 * node.token_hit_rate;
                write!(
                    out,
                    "node {number}: {requests} requests, hit rate {percent:.1} %, {saved} saved"
                )
            })?;
        }
        row(out, "wrong bytes", |out| {
            write!(out, "{}, every loaded byte compared", grouped(report.wrong_bytes))
        })
    }

    fn speed(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        row(out, "lookup", |out| latency(out, report.lookup_us))?;
        row(out, "load", |out| {
            latency(out, report.load_us)?;
            write!(out, ", {:.2} GB/s while loading", report.load_gbps)
        })?;
        row(out, "throughput", |out| {
            let (read, write) = (report.read_gbps, report.write_gbps);
            write!(out, "{read:.3} GB/s loaded and {write:.3} GB/s saved, over all the time")
        })?;
        match report.expected_load_error_p90 {
            None => Ok(()),
            Some(error) => row(out, "forecast", |out| {
                let percent = 100.0 * error;
                write!(out, "9 of 10 loads from SSD within {percent:.0} % of what was foretold")
            }),
        }
    }

    fn trouble(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        if let Some(restart_ms) = report.restart_ms {
            row(out, "restart", |out| {
                let how = if report.killed { "killed (SIGKILL)" } else { "stopped (SIGTERM)" };
                match report.restarts {
                    1 => write!(
                        out,
                        "the sidecar was {how} and served again {restart_ms:.0} ms after its start"
                    ),
                    count => write!(
                        out,
                        "{count} sidecars were {how} and served again {restart_ms:.0} ms after their \
                         start at most"
                    ),
                }
            })?;
        }
        if report.sidecar_losses > 0 {
            row(out, "losses", |out| {
                let (losses, ms) = (report.sidecar_losses, report.waited_ms);
                write!(out, "{losses} requests lost the sidecar and waited {ms} ms for it in all")
            })?;
        }
        if report.leases_lost > 0 {
            row(out, "leases", |out| {
                write!(out, "{} ran out under a request", report.leases_lost)
            })?;
        }
        if let Some(spoiled) = report.spoiled {
            row(out, "spoiled", |out| {
                write!(out, "{spoiled} places in what node 1 sent were changed or cut off")
            })?;
        }
        for (reason, requests) in &report.misses {
            row(out, "not loaded", |out| write!(out, "{reason}, in {requests} requests"))?;
        }
        for (refusal, requests) in &report.refusals {
            row(out, "not saved", |out| write!(out, "{refusal}, in {requests} requests"))?;
        }
        if let Some(error) = &report.first_error {
            row(out, "errors", |out| write!(out, "{}; the first: {error}", report.errors))?;
        }
        Ok(())
    }

    /// What all of it comes to, for whoever has never seen such numbers.
    fn summary(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        writeln!(out)?;
        if report.wrong_bytes > 0 || report.errors > 0 {
            return writeln!(out, "The cache broke its promise: see above.");
        }
        let percent = 100.0 * report.token_hit_rate;
        let restarted = match (report.restarts > 0, report.killed) {
            (false, _) => "",
            (true, true) => ", although the sidecar was killed on the way",
            (true, false) => ", although the sidecar was restarted on the way",
        };
        writeln!(
            out,
            "Of 100 tokens that came in, a GPU would have had to prefill {:.1}: the KV of the other \
             {percent:.1} came back from the cache, every byte of it right{restarted}.",
            100.0 - percent,
        )
    }
}

fn row(
    out: &mut fmt::Formatter<'_>,
    name: &str,
    value: impl FnOnce(&mut fmt::Formatter<'_>) -> fmt::Result,
) -> fmt::Result {
    write!(out, "  {name:<12} ")?;
    value(out)?;
    writeln!(out)
}

#[expect(clippy::cast_precision_loss, reason = "microseconds for people")]
fn latency(out: &mut fmt::Formatter<'_>, us: Percentiles) -> fmt::Result {
    let ms = |us: u64| us as f64 / 1e3;
    write!(out, "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", ms(us.p50), ms(us.p99), ms(us.max))
}

/// Digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    //! Proves how numbers are written.

    use super::grouped;

    #[test]
    fn digits_stand_in_groups_of_three() {
        let written = [0, 12, 123, 1234, 123_456, 1_234_567].map(grouped);
        assert_eq!(written, ["0", "12", "123", "1,234", "123,456", "1,234,567"]);
    }
}
