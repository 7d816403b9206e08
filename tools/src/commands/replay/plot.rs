//! The token hit rate over the time of a replay, drawn as SVG: what the node itself had, what its peers
//! had as well, and behind it what a cache that forgets nothing would have had of the same requests.

use super::args::How;
use super::outcome::Outcome;
use super::report::ratio;
use anyhow::{Context, Result};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More are put together.
const WINDOWS_MAX: usize = 240;
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
/// Edges of what is within the axes.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 600.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 290.0;

#[derive(Debug)]
pub(super) struct Plot {
    path: PathBuf,
    file: File,
    nodes: u16,
    block_tokens: u64,
    /// One a second.
    windows: Vec<Window>,
    disturbance: Option<Span>,
}

/// What was finished within a time.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    input_tokens: u64,
    own_blocks: u64,
    peer_blocks: u64,
    ideal_blocks: u64,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    how: How,
    from: Duration,
    /// `None` where nothing had to come back, or did not until the end.
    until: Option<Duration>,
}

/// A line of the plot, and its value in a window.
struct Line {
    id: &'static str,
    name: &'static str,
    stroke: &'static str,
    width: u32,
    blocks: fn(&Window) -> u64,
}

/// The later ones lie on top.
const LINES: [Line; 3] = [
    Line {
        id: "ideal",
        name: "unlimited cache",
        stroke: "#cccccc",
        width: 5,
        blocks: |window| window.ideal_blocks,
    },
    Line {
        id: "all",
        name: "own node and peers",
        stroke: "#1d6fb8",
        width: 2,
        blocks: |window| window.own_blocks + window.peer_blocks,
    },
    Line {
        id: "own",
        name: "own node",
        stroke: "#c2410c",
        width: 2,
        blocks: |window| window.own_blocks,
    },
];

impl Plot {
    /// The file is made at once: that it cannot be is known before anything runs.
    pub(super) fn create(path: &Path, nodes: u16, block_tokens: u64) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let (windows, disturbance) = (Vec::new(), None);
        Ok(Self { path: path.to_owned(), file, nodes, block_tokens, windows, disturbance })
    }

    pub(super) fn add(&mut self, outcome: &Outcome) {
        let second = usize::try_from(outcome.served_ms / 1000).expect("addresses have 64 bits");
        if second >= self.windows.len() {
            self.windows.resize(second + 1, Window::default());
        }
        self.windows[second].add(&Window {
            input_tokens: outcome.input_tokens,
            own_blocks: outcome.hit_own().into(),
            peer_blocks: outcome.hit_peer.into(),
            ideal_blocks: outcome.ideal_hit,
        });
    }

    pub(super) fn disturbed(&mut self, how: How, at: Duration) {
        self.disturbance = Some(Span { how, from: at, until: None });
    }

    pub(super) fn restored(&mut self, at: Duration) {
        if let Some(span) = &mut self.disturbance {
            span.until = Some(at);
        }
    }

    pub(super) fn finish(mut self) -> Result<()> {
        let text = self.drawn();
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("write {}", self.path.display()))
    }

    fn drawn(&self) -> String {
        let mut out = String::new();
        self.draw(&mut out).expect("text takes any line");
        out
    }

    fn draw(&self, out: &mut String) -> fmt::Result {
        let seconds = self.windows.len().div_ceil(WINDOWS_MAX).max(1);
        let windows: Vec<_> = self.windows.chunks(seconds).map(Window::sum).collect();
        let rate = |window: &Window, blocks: u64| {
            100.0 * ratio(blocks * self.block_tokens, window.input_tokens)
        };
        let rates =
            windows.iter().flat_map(|window| LINES.map(|line| rate(window, (line.blocks)(window))));
        let axes = Axes::of(self.windows.len() as u64, rates.fold(0.0, f64::max));
        let nodes = if self.nodes == 1 { "" } else { "s" };
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">Token hit rate of {} node{nodes}, in \
             windows of {seconds} s</text>",
            self.nodes,
        )?;
        if let Some(span) = &self.disturbance {
            axes.draw_span(out, span)?;
        }
        axes.draw(out)?;
        for (place, line) in (0u32..).zip(&LINES) {
            let Line { id, name, stroke, width, blocks } = line;
            write!(out, "<path id=\"{id}\" d=\"")?;
            let mut command = 'M';
            for (index, window) in (0u64..).zip(&windows) {
                // Where nothing was finished there is no rate, and the line is broken.
                if window.input_tokens == 0 {
                    command = 'M';
                    continue;
                }
                let middle = (ratio(index, 1) + 0.5) * ratio(seconds as u64, 1);
                let (x, y) = (axes.x(middle), axes.y(rate(window, blocks(window))));
                write!(out, "{command}{x:.1} {y:.1}")?;
                command = 'L';
            }
            let y = TOP + 16.0 * f64::from(place) + 4.0;
            writeln!(
                out,
                "\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"{width}\" \
                 stroke-linecap=\"round\" stroke-linejoin=\"round\"/>\
                 <path d=\"M{} {y}h16\" stroke=\"{stroke}\" stroke-width=\"{width}\"/>\
                 <text x=\"{}\" y=\"{}\">{name}</text>",
                RIGHT + 12.0,
                RIGHT + 34.0,
                y + 4.0,
            )?;
        }
        writeln!(out, "</svg>")
    }
}

impl Window {
    fn add(&mut self, other: &Self) {
        self.input_tokens += other.input_tokens;
        self.own_blocks += other.own_blocks;
        self.peer_blocks += other.peer_blocks;
        self.ideal_blocks += other.ideal_blocks;
    }

    fn sum(windows: &[Self]) -> Self {
        let mut sum = Self::default();
        for window in windows {
            sum.add(window);
        }
        sum
    }
}

/// Seconds to the right, percent upwards; both from 0.
struct Axes {
    seconds: u64,
    percent: u64,
}

impl Axes {
    /// Tens of percent, so that the highest rate is within.
    fn of(seconds: u64, highest: f64) -> Self {
        let tens = (1..10u64).find(|tens| ratio(10 * tens, 1) >= highest).unwrap_or(10);
        Self { seconds: seconds.max(1), percent: 10 * tens }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (seconds / ratio(self.seconds, 1)).min(1.0)
    }

    fn y(&self, percent: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * percent / ratio(self.percent, 1)
    }

    fn draw(&self, out: &mut String) -> fmt::Result {
        let steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600];
        let step = steps.into_iter().find(|step| self.seconds / step <= 10).unwrap_or(36_000);
        for second in (0..=self.seconds / step).map(|steps| steps * step) {
            let x = self.x(ratio(second, 1));
            writeln!(
                out,
                "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#ddd\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{second}</text>",
                BOTTOM + 16.0,
            )?;
        }
        for percent in (0..=self.percent).step_by(10) {
            let y = self.y(ratio(percent, 1));
            writeln!(
                out,
                "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{percent}</text>",
                LEFT - 6.0,
                y + 4.0,
            )?;
        }
        writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">seconds since the start</text>\n\
             <text x=\"16\" y=\"{}\">% of input tokens</text>",
            f64::midpoint(LEFT, RIGHT),
            BOTTOM + 38.0,
            TOP - 14.0,
        )
    }

    /// The moment as a line, and what was away until it was back as a grey ground.
    fn draw_span(&self, out: &mut String, span: &Span) -> fmt::Result {
        let from = self.x(span.from.as_secs_f64());
        if let Some(until) = span.until {
            let width = self.x(until.as_secs_f64()) - from;
            let height = BOTTOM - TOP;
            writeln!(
                out,
                "<rect id=\"away\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" \
                 height=\"{height}\" fill=\"#f3eee6\"/>"
            )?;
        }
        writeln!(
            out,
            "<path id=\"disturbance\" d=\"M{from:.1} {}V{BOTTOM}\" stroke=\"#333\" \
             stroke-dasharray=\"4 3\"/><text x=\"{:.1}\" y=\"{}\">{}</text>",
            TOP - 12.0,
            from + 6.0,
            TOP - 6.0,
            span.how,
        )
    }
}

#[cfg(test)]
mod tests;
