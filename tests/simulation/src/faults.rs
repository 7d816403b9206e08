//! What a simulated drive may do wrong, and how often: drawn from the seed.

use fastrand::Rng;
use std::time::Duration;

/// Each is a chance in a million operations, unless it says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// EIO, the first pages of the operation perhaps done.
    pub read_error: u32,
    pub write_error: u32,
    /// EIO, and of what was to be synced some pages are lost for good while later syncs succeed.
    pub sync_error: u32,
    /// As `write_error`, with ENOSPC.
    pub no_space: u32,
    /// Fewer bytes are transferred than asked for.
    pub short: u32,
    /// EINTR or EAGAIN: nothing is transferred.
    pub interrupted: u32,
    /// Takes up to `spike_max` instead of some microseconds.
    pub spike: u32,
    pub spike_max: Duration,
    /// Never completes, or after many seconds: the drive is withdrawn, and back then.
    pub never: u32,
    /// Reported as written, and nothing is.
    pub lost_write: u32,
    /// Written to another place, perhaps of another segment.
    pub misdirected_write: u32,
    /// Read from another place.
    pub misdirected_read: u32,
    /// A bit flips somewhere in what has been written: in a million steps of the simulation.
    pub rot: u32,
    /// Recovery cannot read what it reads: EIO.
    pub unreadable: u32,
    /// The catalogue is damaged when it is opened: in a thousand starts.
    pub catalogue_damaged: u32,
    /// The catalogue is gone: in a thousand starts.
    pub catalogue_gone: u32,
}

impl Faults {
    /// A third of all seeds meet a drive that is slow and nothing worse; the others each meet some
    /// of the faults, often enough that most runs see them.
    pub fn draw(random: &mut Rng) -> Self {
        let mut faults = Self {
            short: rate(random, 30_000),
            interrupted: rate(random, 30_000),
            spike: rate(random, 50_000),
            spike_max: Duration::from_millis(random.u64(1..400)),
            catalogue_gone: rate(random, 200),
            ..Self::default()
        };
        if random.u8(0..3) == 0 {
            return faults;
        }
        for (fault, most) in [
            (&mut faults.read_error, 20_000),
            (&mut faults.write_error, 8_000),
            (&mut faults.sync_error, 20_000),
            (&mut faults.no_space, 8_000),
            (&mut faults.never, 4_000),
            (&mut faults.lost_write, 10_000),
            (&mut faults.misdirected_write, 10_000),
            (&mut faults.misdirected_read, 10_000),
            (&mut faults.rot, 5_000),
            (&mut faults.unreadable, 20_000),
            (&mut faults.catalogue_damaged, 200),
        ] {
            *fault = rate(random, most);
        }
        faults
    }

    /// Whether bytes may be others than were written, other than by a power loss.
    pub fn damage(&self) -> bool {
        self.lost_write + self.misdirected_write + self.misdirected_read + self.rot > 0
    }
}

/// Mostly none.
fn rate(random: &mut Rng, most: u32) -> u32 {
    if random.u8(0..4) == 0 { random.u32(1..most) } else { 0 }
}

pub fn strikes(random: &mut Rng, in_a_million: u32) -> bool {
    in_a_million > 0 && random.u32(0..1_000_000) < in_a_million
}
