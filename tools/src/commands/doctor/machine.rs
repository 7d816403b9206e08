//! What a sidecar asks of the machine, whatever its drives.

use super::Check;
use crate::rows::size;
use refrain_store::uring::{self, Support};
use rustix::process::{Resource, getrlimit};

/// The first kernel with all that the ring asks for.
const KERNEL_FULL: (u32, u32) = (6, 1);
/// The first kernel whose io_uring is of use.
const KERNEL_LEAST: (u32, u32) = (5, 11);
/// What a modest arena pins.
const MEMLOCK_WANTED: u64 = 1 << 30;
/// A file a segment: 16 TiB of 1 GiB segments, and as much again for sessions.
const FILES_WANTED: u64 = 32 << 10;

pub(super) fn check() -> Vec<Check> {
    vec![
        kernel(&rustix::system::uname().release().to_string_lossy()),
        io_uring(),
        memlock(getrlimit(Resource::Memlock).current),
        huge_pages(
            &std::fs::read_to_string("/proc/meminfo").unwrap_or_default(),
            refrain_store::arena::gathers_huge_pages(),
        ),
        open_files(getrlimit(Resource::Nofile).maximum),
    ]
}

fn kernel(release: &str) -> Check {
    const NAME: &str = "kernel";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => return Check::warning(NAME, release, "check that it is Linux 6.1 or later"),
    };
    if version >= KERNEL_FULL {
        return Check::ok(NAME, release);
    }
    let advice = if version >= KERNEL_LEAST {
        "use Linux 6.1 or later: io_uring works here with reduced flags, a little slower"
    } else {
        "use Linux 6.1 or later: the thread pool is all that works here"
    };
    Check::warning(NAME, release, advice)
}

fn io_uring() -> Check {
    const NAME: &str = "io_uring";
    match uring::support() {
        Ok(Support::Full) => Check::ok(NAME, "works, with all that is asked of it"),
        Ok(Support::Reduced) => {
            Check::warning(NAME, "works, with reduced flags", "use Linux 6.1 or later")
        }
        Err(error) => {
            let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            let advice = match setting.as_deref().map(str::trim) {
                Ok("1" | "2") => "set sysctl kernel.io_uring_disabled=0",
                _ => {
                    "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile"
                }
            };
            let advice = format!("{advice}; until then a thread pool does the work, at more CPU");
            Check::warning(NAME, format!("refused: {error}"), advice)
        }
    }
}

fn memlock(limit: Option<u64>) -> Check {
    const NAME: &str = "memlock";
    match limit {
        None => Check::ok(NAME, "unlimited"),
        Some(limit) if limit >= MEMLOCK_WANTED => Check::ok(NAME, size(limit)),
        Some(limit) => Check::warning(
            NAME,
            size(limit),
            "raise it (LimitMEMLOCK=infinity, ulimit -l unlimited): the arena cannot be \
             registered, and each read maps its pages anew",
        ),
    }
}

/// `gathers`: the kernel makes huge pages of ordinary ones that are resident.
fn huge_pages(meminfo: &str, gathers: bool) -> Check {
    const NAME: &str = "huge pages";
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
    };
    let (Some(total), Some(free), Some(kib)) =
        (field("HugePages_Total"), field("HugePages_Free"), field("Hugepagesize"))
    else {
        return Check::warning(NAME, "none in this kernel", "the arena takes ordinary pages");
    };
    let found = format!("{free} of {total} free, {} each", size(kib << 10));
    if free > 0 {
        return Check::ok(NAME, found);
    }
    if gathers {
        return Check::ok(NAME, format!("{found}; made of ordinary ones as arenas are filled"));
    }
    let advice = format!(
        "set sysctl vm.nr_hugepages to the arena's size in {}, or run Linux 6.1 or later: it takes \
         ordinary pages else, slower to pin, to read into and to copy from",
        size(kib << 10)
    );
    Check::warning(NAME, found, advice)
}

fn open_files(limit: Option<u64>) -> Check {
    const NAME: &str = "open files";
    match limit {
        None => Check::ok(NAME, "unlimited"),
        Some(limit) if limit >= FILES_WANTED => Check::ok(NAME, format!("{limit} at most")),
        Some(limit) => Check::warning(
            NAME,
            format!("{limit} at most"),
            "raise it (LimitNOFILE=65536): each segment is a file",
        ),
    }
}

#[cfg(test)]
mod tests {
    //! Proves what is said of machines that a test does not run on.

    use super::super::State::{Ok, Warning};
    use super::*;

    #[test]
    fn old_kernels_are_named_as_such() {
        assert_eq!(kernel("6.1.0-18-amd64").state, Ok);
        assert_eq!(kernel("6.17").state, Ok);
        assert_eq!(kernel("5.15.0").state, Warning);
        assert!(kernel("5.4.0-generic").advice.unwrap().contains("thread pool"));
        assert_eq!(kernel("unknown").state, Warning);
    }

    #[test]
    fn too_little_to_pin_is_a_warning() {
        assert_eq!(memlock(None).state, Ok);
        assert_eq!(memlock(Some(8 << 20)).state, Warning);
    }

    #[test]
    fn huge_pages_count_where_some_are_free_or_can_be_made() {
        let text = |total, free| {
            format!(
                "MemTotal: 9 kB\nHugePages_Total: {total}\nHugePages_Free: {free}\nHugepagesize: 2048 kB\n"
            )
        };
        assert_eq!(huge_pages(&text(8, 8), false).state, Ok);
        assert_eq!(huge_pages(&text(8, 0), false).state, Warning);
        assert_eq!(huge_pages(&text(8, 0), true).state, Ok);
        assert_eq!(huge_pages("", false).state, Warning);
    }
}
