//! A run: a node over simulated drives, started, worked with, and cut off, several times over.
//!
//! One step at a time: a task, a drive's round or a note to a catalogue, drawn by lot among those
//! that can go on; where none can, time passes until one can. So every order of what threads would
//! do side by side may come up, and the same seed always brings up the same.

use crate::audit::{Owed, owed_after};
use crate::client::{Client, Context, Counts};
use crate::disk::Cut;
use crate::drive::{Bench, Running, SimulatedDrive};
use crate::faults::{Faults, strikes};
use crate::model::{Mark, Model};
use crate::names::{Family, SECRET};
use crate::plan::Plan;
use crate::tasks::Tasks;
use crate::time::VirtualTime;
use fastrand::Rng;
use refrain_index::catalog::Catalog;
use refrain_server::assembly::Assembly;
use refrain_server::clock::{Clock, Time};
use refrain_server::config::{Config, DriveEntry};
use refrain_server::node::Node;
use refrain_server::place::DriveId;
use refrain_store::engine::Durability;
use std::cell::{Cell, RefCell};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Steps of one life: more are a loop that never ends.
const STEPS_MAX: u64 = 2_000_000;
/// When a life ends in which an operation never will.
const LIFE_MAX: Duration = Duration::from_mins(5);
/// By then everything has ended that ever will, and withdrawn drives alone are looked at.
const SETTLED: Duration = Duration::from_mins(2);

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Stop,
    Cut(Cut),
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub steps: u64,
    pub loaded: u64,
    pub missed: u64,
    pub saved: u64,
    pub promised: u64,
    pub refused: u64,
    /// Differs where anything went another way.
    pub digest: u64,
}

pub struct World {
    plan: Plan,
    random: Rng,
    time: VirtualTime,
    pub(crate) drives: Vec<SimulatedDrive>,
    running: Vec<Running>,
    pub(crate) tasks: Tasks,
    families: Rc<Vec<Family>>,
    pub(crate) model: Rc<RefCell<Model>>,
    counts: Rc<Counts>,
    pub(crate) owed: Vec<Owed>,
    /// The power was lost where nothing is synced: what is behind a hole is known to the catalogue
    /// alone.
    has_holes: bool,
    directory: PathBuf,
    pub(crate) faulty: bool,
    steps: u64,
    digest: u64,
    is_recorded: bool,
    pub(crate) marks: Vec<(usize, Mark)>,
    /// The file of epochs as each drop left it, with how many changes of the disk came before.
    pub(crate) dropped: Vec<(usize, Vec<u8>)>,
}

/// What a seed's run is made of.
pub fn plan(seed: u64) -> Plan {
    Plan::draw(&mut Rng::with_seed(seed))
}

/// Runs a seed to its end; a panic says what went wrong. `directory` keeps the little that is not
/// simulated: the secret, and the epochs of dropped namespaces.
pub fn run(seed: u64, directory: &Path) -> Summary {
    // Names of leases and sessions are drawn from the thread's own.
    fastrand::seed(seed);
    let mut random = Rng::with_seed(seed);
    let plan = Plan::draw(&mut random);
    let mut world = World::new(plan, random, directory);
    for _ in 0..world.plan.lives {
        world.live();
    }
    world.summary()
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl World {
    pub fn new(plan: Plan, random: Rng, directory: &Path) -> Self {
        let families = Rc::new(plan.families.clone());
        let drives = (0..plan.drives).map(|number| {
            let number = u8::try_from(number).expect("a few drives");
            SimulatedDrive::new(number, plan.segments, plan.segment_bytes)
        });
        let drives = drives.collect();
        prepare(directory, plan.drives);
        Self {
            random,
            time: VirtualTime::start(),
            drives,
            running: Vec::new(),
            tasks: Tasks::default(),
            model: Rc::new(RefCell::new(Model::new(Rc::clone(&families)))),
            families,
            counts: Rc::default(),
            owed: Vec::new(),
            has_holes: false,
            directory: directory.into(),
            faulty: false,
            steps: 0,
            digest: 0,
            is_recorded: false,
            marks: Vec::new(),
            dropped: Vec::new(),
            plan,
        }
    }

    /// One life without a cut, every change of its only drive noted.
    pub(crate) fn live_recorded(&mut self) {
        self.is_recorded = true;
        self.drives[0].disk.lock().record();
        let node = self.start();
        let context = self.context(node);
        self.tasks.spawn(Arc::clone(&context.node).reclaim(DriveId(0)));
        for _ in 0..self.plan.clients {
            context.at_work.set(context.at_work.get() + 1);
            self.tasks.spawn(Client::new(Rc::clone(&context), self.random.fork()).run());
        }
        while context.at_work.get() > 0 {
            assert!(self.step(&context), "clients wait, and nothing will ever happen");
        }
        self.settle(&context);
        self.end(context, End::Cut(Cut::Kill));
    }

    /// One start and one look at everything that is owed.
    pub(crate) fn look(&mut self) {
        let node = self.start();
        let context = self.context(node);
        self.audit(&context);
        self.end(context, End::Cut(Cut::Kill));
    }

    fn summary(&self) -> Summary {
        let Counts { loaded, missed, saved, promised, refused } = &*self.counts;
        Summary {
            steps: self.steps,
            loaded: loaded.get(),
            missed: missed.get(),
            saved: saved.get(),
            promised: promised.get(),
            refused: refused.get(),
            digest: self.digest,
        }
    }

    /// From one start to the next.
    fn live(&mut self) {
        let node = self.start();
        let context = self.context(node);
        self.audit(&context);
        for drive in (0..=u8::MAX).take(self.drives.len()) {
            self.tasks.spawn(Arc::clone(&context.node).reclaim(DriveId(drive)));
            if self.plan.faults.never > 0 {
                self.tasks.spawn(Arc::clone(&context.node).attend(DriveId(drive)));
            }
        }
        self.set_faults(self.plan.faults);
        for _ in 0..self.plan.clients {
            context.at_work.set(context.at_work.get() + 1);
            let client = Client::new(Rc::clone(&context), self.random.fork());
            self.tasks.spawn(client.run());
        }
        // Half of all lives end in the middle of something.
        let cut_after = if self.random.bool() { self.random.u64(1..3000) } else { u64::MAX };
        let last = self.steps.saturating_add(cut_after);
        let begun = self.time.now();
        while self.steps < last && context.at_work.get() > 0 {
            // A drive that hangs is looked at for ever: something happens, and comes to nothing.
            let is_long = self.is_hung() && self.time.now() - begun > LIFE_MAX;
            if is_long || !self.step(&context) {
                assert!(self.is_hung(), "clients wait, and nothing will ever happen");
                break;
            }
        }
        let is_finished = context.at_work.get() == 0;
        if is_finished {
            self.settle(&context);
        }
        let end = match self.random.u8(0..4) {
            0 if is_finished && !self.is_hung() => End::Stop,
            1 => End::Cut(Cut::Kill),
            _ => End::Cut(Cut::PowerLoss),
        };
        self.end(context, end);
    }

    fn start(&mut self) -> Arc<Node> {
        let config = self.config();
        let clock = Clock::of(Arc::new(self.time.clone()));
        let mut assembly = Assembly::begin(&config, clock).expect("memory for a node");
        let faults = self.plan.faults;
        for (number, drive) in self.drives.iter().enumerate() {
            if self.random.u32(0..1000) < faults.catalogue_gone {
                drive.catalogue.remove();
            }
            if self.random.u32(0..1000) < faults.catalogue_damaged {
                drive.catalogue.damage(&mut self.random);
            }
            let path = &config.drives[number].path;
            let durability = self.plan.durability;
            let opening = drive.open(path, durability, faults.unreadable, &mut self.random);
            let opening = opening.expect("a store that was begun is opened again");
            let (pairs, state) = drive.catalogue.open();
            let catalog = Catalog::over(pairs, state, opening.store_id());
            let catalog = catalog.expect("rows in memory can be read");
            let mut bench = Bench {
                plan: &self.plan,
                time: &self.time,
                disk: drive.disk.clone(),
                random: self.random.fork(),
                writer: None,
                running: None,
            };
            assembly.add(opening, catalog, &mut bench).expect("a catalogue can be begun anew");
            self.running.push(bench.running.expect("a drive that was added runs"));
        }
        let node = assembly.finish().expect("secret and epochs can be read");
        self.tasks.spawn(Arc::clone(&node).end_leases());
        node
    }

    fn config(&self) -> Config {
        let Plan { segments, segment_bytes, load_arena, save_queue, .. } = self.plan;
        let capacity = segment_bytes * u64::try_from(segments).expect("usize fits");
        let drives = (0..self.plan.drives).map(|number| DriveEntry {
            path: drive_path(&self.directory, number),
            capacity,
            segment: Some(segment_bytes),
        });
        Config {
            drives: drives.collect(),
            durability: self.plan.durability,
            load_arena,
            save_queue,
            lease_default: self.plan.lease_default,
            lease_max: self.plan.lease_max,
            secret_file: Some(self.directory.join("secret")),
            ..Config::default()
        }
    }

    fn context(&mut self, node: Arc<Node>) -> Rc<Context> {
        let resident = node.keys(usize::MAX);
        self.model.borrow_mut().restarted(&resident);
        self.check_owed(&resident.into_iter().collect());
        let changes = RefCell::new(node.changes());
        Rc::new(Context {
            node,
            time: self.time.clone(),
            plan: self.plan.clone(),
            families: Rc::clone(&self.families),
            model: Rc::clone(&self.model),
            changes,
            at_work: Cell::new(0),
            counts: Rc::clone(&self.counts),
        })
    }

    fn set_faults(&mut self, faults: Faults) {
        self.faulty = true;
        for running in &mut self.running {
            running.device.set_faults(faults);
        }
    }

    fn is_hung(&self) -> bool {
        self.running.iter().any(|running| running.device.is_hung())
    }

    /// Goes on with something; `false`: nothing will ever happen.
    pub(crate) fn step(&mut self, context: &Context) -> bool {
        self.steps += 1;
        assert!(self.steps < STEPS_MAX, "no end after {STEPS_MAX} steps");
        let now = self.time.now();
        let mut able: Vec<Able> = Vec::new();
        if self.tasks.is_ready() {
            able.push(Able::Task);
        }
        if self.time.has_work() {
            able.push(Able::Work);
        }
        for (number, running) in self.running.iter().enumerate() {
            if running.due(now).is_some_and(|at| at <= now) {
                able.push(Able::Drive(number));
            }
            if running.notes {
                able.push(Able::Journal(number));
            }
        }
        let Some(able) = self.random.choice(able) else {
            let due = self.running.iter().filter_map(|running| running.due(now));
            let Some(next) = due.chain(self.time.next_timer()).min() else { return false };
            self.time.advance_to(next);
            return true;
        };
        let kind = match able {
            Able::Task => {
                self.tasks.run_one(&mut self.random);
                1_u64
            }
            Able::Work => {
                self.time.work();
                4
            }
            Able::Drive(number) => {
                self.running[number].turn(&self.time);
                2
            }
            Able::Journal(number) => {
                let running = &mut self.running[number];
                running.notes = running.writer.write_next();
                3
            }
        };
        let elapsed = u64::try_from(self.time.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.digest = (self.digest.rotate_left(7) ^ elapsed ^ kind).wrapping_mul(0x9e37_79b9);
        let marks = context.model().take_marks();
        if self.is_recorded && !marks.is_empty() {
            let changes = self.drives[0].disk.lock().recorded().len();
            if marks.iter().any(|mark| matches!(mark, Mark::Dropped(_))) {
                let epochs = std::fs::read(epochs_path(&self.directory));
                self.dropped.push((changes, epochs.expect("a drop has written them")));
            }
            self.marks.extend(marks.into_iter().map(|mark| (changes, mark)));
        }
        if self.faulty && strikes(&mut self.random, self.plan.faults.rot) {
            let drive = self.random.usize(0..self.drives.len());
            self.drives[drive].disk.lock().rot(&mut self.random);
        }
        true
    }

    /// Lets everything come to its end: then nobody holds anything.
    fn settle(&mut self, context: &Context) {
        let end = self.time.now() + SETTLED;
        let is_looked_at = self.plan.faults.never > 0;
        while !(is_looked_at && self.time.now() > end) && self.step(context) {}
        let held = context.node.held();
        assert_eq!((held.sessions, held.leases, held.reservations), (0, 0, 0), "{held:?}");
        assert_eq!((held.reserved_bytes, held.segment_holds), (0, 0), "{held:?}");
        context.model().check_resident(&context.node.keys(usize::MAX));
        let is_withdrawn = context.node.drives().any(|drive| drive.withdrawn().is_some());
        if !self.is_hung() && !is_withdrawn {
            assert_eq!((held.reads, held.frame_bytes), (0, held.host_bytes), "{held:?}");
        }
    }

    fn end(&mut self, context: Rc<Context>, end: End) {
        self.owed = owed_after(&context, end, self.has_holes);
        let is_synced = self.plan.durability != Durability::None;
        self.has_holes |= end == End::Cut(Cut::PowerLoss) && !is_synced;
        self.tasks.clear();
        self.time.clear();
        let context = Rc::into_inner(context).expect("clients have gone");
        let node = Arc::into_inner(context.node).expect("tasks have gone");
        let arena = node.load_arena();
        drop(node);
        let running = std::mem::take(&mut self.running);
        for (drive, mut running) in self.drives.iter().zip(running) {
            let cut = match end {
                End::Cut(cut) => cut,
                End::Stop => Cut::Kill,
            };
            if end == End::Stop {
                while let Some(at) = running.due(self.time.now()) {
                    self.time.advance_to(at);
                    running.turn(&self.time);
                }
                assert!(running.is_over, "a drive does not stop");
                while running.writer.write_next() {}
                running.stop();
            } else {
                running.abandon(cut);
            }
            drive.catalogue.cut(cut, &mut self.random);
        }
        assert_eq!(arena.allocated_bytes(), 0, "frames outlived whoever held them");
    }
}

#[derive(Clone, Copy, Debug)]
enum Able {
    Task,
    Work,
    Drive(usize),
    Journal(usize),
}

/// Where the first drive keeps the epochs.
pub(crate) fn epochs_path(directory: &Path) -> PathBuf {
    drive_path(directory, 0).join("epochs")
}

fn drive_path(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("drive-{number}"))
}

/// An empty directory a drive, and the secret.
fn prepare(directory: &Path, drives: usize) {
    for number in 0..drives {
        let path = drive_path(directory, number);
        std::fs::create_dir_all(&path).expect("make a directory");
        for name in ["epochs", "epochs.new"] {
            let left = path.join(name);
            if left.exists() {
                std::fs::remove_file(left).expect("remove the epochs of the run before");
            }
        }
    }
    let secret = directory.join("secret");
    if !secret.exists() {
        std::fs::write(&secret, SECRET).expect("write a secret");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&secret, mode).expect("keep a secret");
    }
}
