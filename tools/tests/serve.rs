//! Proves, on the real binary, that a sidecar says what it is, gives way to none that runs, takes
//! over from one that was killed, and leaves nothing behind when it is told to stop.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use tempfile::TempDir;

fn refrain(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refrain"));
    command.arg("serve").args(args);
    command
}

/// On the disk of the build: others may refuse O_DIRECT.
fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory is made")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("it is UTF-8")
}

struct Sidecar {
    child: Child,
    logs: BufReader<ChildStderr>,
    /// The line that says it serves.
    serving: Value,
}

impl Sidecar {
    /// Returns once it serves.
    fn start(args: &[&str]) -> Self {
        let mut command = refrain(args);
        command.args(["--log-format", "json", "--load-arena", "16MiB"]);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let logs = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut sidecar = Self { child, logs, serving: Value::Null };
        let mut seen = String::new();
        while sidecar.serving["message"] != "serving" {
            let mut line = String::new();
            let read = sidecar.logs.read_line(&mut line).expect("logs are text");
            assert_ne!(read, 0, "it ended: {seen}");
            seen.push_str(&line);
            sidecar.serving = serde_json::from_str(&line).unwrap_or_default();
        }
        sidecar
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for its end.
    fn end(&mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.logs.read_to_string(&mut rest).expect("logs are text");
        (self.child.wait().expect("it is a child"), rest)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
        .expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

fn check_refused(args: &[&str], expected: &str) {
    let Output { status, stderr, stdout } = refrain(args).output().expect("it starts");
    let stderr = String::from_utf8(stderr).expect("it is UTF-8");
    assert_eq!(stderr.lines().last(), Some(&*format!("refrain: {expected}")), "{args:?}");
    assert_eq!((status.code(), stdout.len()), (Some(1), 0), "{args:?}");
}

#[test]
fn sidecar_says_what_it_is_and_leaves_no_socket_at_a_stop() {
    for signal in [Signal::TERM, Signal::INT] {
        let parent = directory();
        let store = parent.path().join("store");
        let args = ["--dir", text(&store), "--capacity", "64MiB", "--metrics", "127.0.0.1:0"];
        let mut sidecar = Sidecar::start(&args);
        let socket = store.join("refrain.sock");
        let address = format!("unix:{}", socket.display());
        assert_eq!(sidecar.serving["listen"], address);
        assert_eq!(sidecar.serving["directories"], text(&store));
        assert_eq!(sidecar.serving["capacity"], "64.0MiB");
        assert_eq!(sidecar.serving["load_arena"], "16.0MiB");
        assert_eq!(std::fs::read_to_string(store.join("address")).unwrap(), address);
        UnixStream::connect(&socket).unwrap();

        let http = sidecar.serving["metrics"].as_str().unwrap();
        assert!(get(http, "/healthz").starts_with("HTTP/1.1 200 "));
        assert!(get(http, "/metrics").contains("\nrefrain_lookups_total 0\n"));

        sidecar.signal(signal);
        let (status, rest) = sidecar.end();
        assert!(status.success(), "{signal:?}: {status}: {rest}");
        let left = ["refrain.sock", "refrain.sock.session", "address"];
        assert!(left.iter().all(|name| !store.join(name).exists()));
        assert!(store.join("secret").exists());
    }
}

#[test]
fn second_sidecar_on_a_store_is_refused_with_the_name_of_the_first() {
    let store = directory();
    let first = Sidecar::start(&["--dir", text(store.path()), "--capacity", "64MiB"]);
    let holder = first.child.id();
    check_refused(
        &["--dir", text(store.path()), "--capacity", "64MiB"],
        &format!(
            "store directory {} is in use by process {holder}: stop it, or give another directory",
            store.path().display()
        ),
    );
    UnixStream::connect(store.path().join("refrain.sock")).unwrap();

    let (other, socket) = (directory(), store.path().join("refrain.sock"));
    let listen = format!("unix:{}", socket.display());
    check_refused(
        &["--dir", text(other.path()), "--capacity", "64MiB", "--listen", &listen],
        &format!(
            "socket {} is served by another sidecar: stop it, or listen elsewhere",
            socket.display()
        ),
    );
}

#[test]
fn sidecar_takes_over_from_one_that_was_killed() {
    let store = directory();
    let args = ["--dir", text(store.path()), "--capacity", "64MiB"];
    let mut killed = Sidecar::start(&args);
    killed.signal(Signal::KILL);
    killed.end();
    let secret = std::fs::read(store.path().join("secret")).unwrap();
    assert!(store.path().join("refrain.sock").exists(), "a kill leaves its socket");
    let _next = Sidecar::start(&args);
    UnixStream::connect(store.path().join("refrain.sock")).unwrap();
    assert_eq!(std::fs::read(store.path().join("secret")).unwrap(), secret);
}

#[test]
fn flags_go_before_the_file() {
    let store = directory();
    let (file, moved) = (store.path().join("refrain.toml"), store.path().join("moved.sock"));
    let config = format!(
        "listen = \"unix:{0}/file.sock\"\ndurability = \"sync\"\nsessions_max = 3\n\
         [[drives]]\npath = \"{0}/store\"\ncapacity = \"64MiB\"\n",
        store.path().display()
    );
    std::fs::write(&file, config).unwrap();
    let listen = format!("unix:{}", moved.display());
    let args = ["--config", text(&file), "--listen", &listen, "--capacity", "48MiB"];
    let sidecar = Sidecar::start(&args);
    assert_eq!(sidecar.serving["listen"], listen);
    assert_eq!(sidecar.serving["capacity"], "48.0MiB");
    assert_eq!(sidecar.serving["durability"], "sync");
    assert_eq!(sidecar.serving["sessions_max"], 3);
}

#[test]
fn what_cannot_be_served_is_refused_in_one_line() {
    let parent = directory();
    let at = |name: &str| -> PathBuf { parent.path().join(name) };
    let (store, lone) = (at("store"), at("missing/store"));
    let drive = ["--dir", text(&store), "--capacity", "64MiB"];
    check_refused(&[], "no drive: give --dir and --capacity, or a --config with [[drives]]");
    check_refused(
        &["--dir", text(&store)],
        "--dir without --capacity: say how many bytes the store may take, as in 100GiB",
    );
    check_refused(
        &["--dir", "/a", "--dir", "/b", "--dir", "/c", "--capacity", "1GiB", "--capacity", "2GiB"],
        "2 capacities for 3 drives: give one for all, or one each",
    );
    check_refused(
        &["--dir", text(&lone), "--capacity", "64MiB"],
        &format!(
            "create store directory {}: No such file or directory (os error 2)",
            lone.display()
        ),
    );
    check_refused(
        &["--config", text(&at("none.toml"))],
        &format!(
            "read config {}: No such file or directory (os error 2)",
            at("none.toml").display()
        ),
    );
    std::fs::write(at("bad.toml"), "sessions_max = 3\nsessoins = 4\n").unwrap();
    let Output { status, stderr, .. } =
        refrain(&["--config", text(&at("bad.toml"))]).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    let expected = format!("refrain: {}:2:1: unknown key `sessoins`", at("bad.toml").display());
    assert!(stderr.starts_with(&expected) && status.code() == Some(1), "{stderr}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    check_refused(
        &[&drive[..], &["--metrics", &address]].concat(),
        &format!(
            "listen on {address} for metrics: free it, or give another address: Address already in \
             use (os error 98)"
        ),
    );
    for level in ["refrain=loud", "inof"] {
        check_refused(
            &[&drive[..], &["--log-level", level]].concat(),
            &format!("--log-level {level:?}: write a level as in debug, or module=level"),
        );
    }
}
