//! Power is lost while a damaged store is repaired: after every write of the repair, with nothing, a
//! part or all of the last one. A repair syncs each write before the next, which is looked at too: no
//! other subset can be left. What was live and could be read before can be read afterwards, and
//! another repair ends well.

use super::quick_home;
use super::segments::{Counts, World};
use crate::faulty::{Cut, Faulty, Last};
use crate::image::Image;
use indicatif::ProgressBar;
use refrain::commands::verify::verify;
use refrain::target::TargetArgs;
use std::fs;
use std::path::Path;

pub(crate) fn run(count: u64, seed: u64) -> String {
    let world = World::new();
    let home = quick_home();
    let (root, mountpoint) = (home.path().join("root"), home.path().join("mount"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&mountpoint).unwrap();
    let faulty = match Faulty::mount(&root, &mountpoint, true) {
        Ok(faulty) => faulty,
        Err(error) => return format!("SKIPPED: FUSE cannot be mounted here: {error}"),
    };
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut cuts, mut stores, mut blocks) = (0, 0, 0);
    while cuts < count {
        let store = root.join("drive");
        world.stores.last().write(&store);
        world.damage(&store, &mut random, &mut Counts::default());
        let damaged = Image::of(&store);
        if repair(&store, false).is_none() {
            // Nothing opens what has lost its superblock.
            continue;
        }
        let readable = world.read_live(&store);
        stores += 1;
        for writes in 1.. {
            let mut is_whole = false;
            for last in [Last::Nothing, Last::FirstPage, Last::Whole] {
                damaged.write(&store);
                faulty.cut(Some(Cut { writes, last }));
                let repaired = repair(&mountpoint.join("drive"), true);
                is_whole = faulty.cut(None).is_none_or(|cut| cut.writes > 0);
                assert!(!is_whole || repaired.is_some(), "a repair ends by itself");
                let left = world.read_live(&store);
                let lost: Vec<_> = readable.difference(&left).collect();
                assert!(lost.is_empty(), "write {writes}, {last:?}: lost {lost:?}");
                assert!(repair(&store, true).is_some());
                assert_eq!(repair(&store, false), Some(0), "write {writes}, {last:?}: left");
                let left = world.read_live(&store);
                let lost: Vec<_> = readable.difference(&left).collect();
                assert!(lost.is_empty(), "write {writes}, {last:?}: repaired, and lost {lost:?}");
                blocks += readable.len() as u64;
                if is_whole {
                    break;
                }
                cuts += 1;
            }
            if is_whole {
                break;
            }
        }
    }
    assert_eq!(faulty.unsynced_max(), 1, "each write of a repair is synced before the next");
    drop(faulty);
    format!(
        "{cuts} cuts in the repairs of {stores} stores; {blocks} readable blocks looked for, none \
         lost, and every repair ended well when it was made again"
    )
}

/// What is damaged, or left so; `None` where the store does not open.
fn repair(store: &Path, repair: bool) -> Option<u64> {
    let target = TargetArgs { dir: vec![store.into()], addr: None };
    let report = verify(&target, repair, None, &ProgressBar::hidden()).ok()?;
    Some(report.left())
}
