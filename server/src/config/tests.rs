//! Proves that the example is what it says, and that each refusal names file, line, column and key.

use super::*;

const EXAMPLE: &str = include_str!("../../../docs/refrain.toml");
const DRIVE: &str = "[[drives]]\npath = \"/a\"\ncapacity = \"1GiB\"\n";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("refrain.toml")).map_err(|error| error.to_string())
}

fn refuses(text: &str, expected: &str) {
    assert_eq!(parse(text).unwrap_err(), expected, "{text}");
}

/// A config that flags made is refused without a place.
fn refuses_to_start(change: impl FnOnce(&mut Config), expected: &str) {
    let mut config = Config::default_for("/a", 1 << 30);
    change(&mut config);
    assert_eq!(config.validate().unwrap_err().to_string(), expected);
}

/// The example with its commented keys in force.
fn uncommented() -> String {
    let is_table = |line: &str| line.starts_with('[') && line.ends_with(']');
    let is_key = |line: &str| line.split(' ').nth(1) == Some("=") || is_table(line);
    let lines = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if is_key(key) => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn example_is_the_defaults_over_one_drive() {
    let config = parse(EXAMPLE).unwrap();
    config.validate().unwrap();
    assert_eq!(config, Config::default_for("/var/lib/refrain", 100 << 30));
}

#[test]
fn commented_keys_of_the_example_stand_with_their_defaults() {
    let written = parse(&uncommented()).unwrap();
    let default = Config::default_for("/var/lib/refrain", 100 << 30);
    assert_eq!(written.listen(), default.listen());
    assert_eq!(written.secret_file, Some(written.drives[0].path.join("secret")));
    assert_eq!((written.load_arena, written.drives[0].segment), (1 << 30, Some(1 << 30)));
    assert_eq!(written.metrics, Some("127.0.0.1:9464".parse().unwrap()));
    let mut rest = written;
    rest.drives[0].segment = None;
    (rest.listen, rest.metrics, rest.secret_file) = (None, None, None);
    let peers = &mut rest.peers;
    assert_eq!(peers.listen, Some("10.0.0.7:9470".parse().unwrap()));
    (peers.listen, peers.data_listen) = (None, None);
    (peers.tls_ca, peers.tls_certificate, peers.tls_key) = (None, None, None);
    rest.load_arena = default.load_arena;
    assert_eq!(rest.directory.take().map(|directory| directory.node), Some(17));
    assert_eq!(rest, default);
}

#[test]
fn example_has_every_key() {
    let known = |text: &str| parse(text).unwrap_err();
    let tables = ["", "[[drives]]\n", "[peers]\n", "[directory]\n"];
    for message in tables.map(|table| known(&format!("{table}nothing = 1"))) {
        let keys: Vec<_> = message.split('`').skip(3).step_by(2).collect();
        assert!(keys.len() >= 3, "{message}");
        for key in keys {
            let has = |line: &str| line.starts_with(&format!("{key} = "));
            let tables = [format!("[[{key}]]"), format!("[{key}]")];
            let is_table = |line: &str| tables.iter().any(|table| table == line);
            assert!(uncommented().lines().any(|line| has(line) || is_table(line)), "no {key}");
        }
    }
}

#[test]
fn usual_arena_is_a_quarter_of_a_small_machine_in_whole_huge_pages() {
    assert_eq!(usual_load_arena(64 << 30), 1 << 30);
    assert_eq!(usual_load_arena(2 << 30), 512 << 20);
    assert_eq!(usual_load_arena((2 << 30) + 4096 * 4), 512 << 20);
    assert!(total_memory() > 64 << 20);
}

#[test]
fn what_depends_on_a_drive_follows_the_first_one() {
    let mut config = Config::default_for("/a", 1 << 30);
    assert_eq!(config.listen().unwrap().to_string(), "unix:/a/refrain.sock");
    config.drives[0].path = "/b".into();
    assert_eq!(config.listen().unwrap().to_string(), "unix:/b/refrain.sock");
    config.listen = Some("unix:/run/r.sock".parse().unwrap());
    assert_eq!(config.listen().unwrap().to_string(), "unix:/run/r.sock");
    let drives = config.drive_configs();
    assert_eq!((drives.len(), &*drives[0].path), (1, Path::new("/b")));
    assert_eq!((drives[0].capacity_bytes, drives[0].segment_bytes), (1 << 30, None));
}

#[test]
fn unknown_keys_are_refused_with_those_that_are_known() {
    let error = parse("sessions_max = 3\n  lod_arena = 1\n").unwrap_err();
    assert!(
        error.starts_with("refrain.toml:2:3: unknown key `lod_arena`, expected one of `listen`")
    );
    refuses(
        "[[drives]]\npath = \"/a\"\ncapacity = 1073741824\nsize = 3\n",
        "refrain.toml:4:1: unknown key `size`, expected one of `path`, `capacity`, `segment`",
    );
}

#[test]
fn values_of_the_wrong_kind_are_refused_with_what_is_expected() {
    refuses(
        "load_arena = \"1 gallon\"",
        "refrain.toml:1:14: load_arena: \"1 gallon\" is no size: write bytes, or a number and its \
         unit as in 100GiB",
    );
    refuses(
        "load_arena = -1",
        "refrain.toml:1:14: load_arena: invalid value: integer `-1`, expected bytes, as a number or \
         as in \"100GiB\"",
    );
    refuses(
        "# ä\n\nlease_max = 60",
        "refrain.toml:3:13: lease_max: invalid value: integer `60`, expected a time as in \"10s\" or \
         \"50ms\"",
    );
    refuses(
        "drain = \"10 years\"",
        "refrain.toml:1:9: drain: \"10 years\" is no time: write a whole number and its unit as in \
         10s, 50ms or 2m",
    );
    refuses(
        "io_engine = \"aio\"",
        "refrain.toml:1:13: io_engine: \"aio\" is no I/O engine: write auto, uring or blocking",
    );
    refuses(
        "durability = \"always\"",
        "refrain.toml:1:14: durability: \"always\" is no durability: write none, group or sync",
    );
    refuses(
        "listen = \"tcp://0.0.0.0:1\"",
        "refrain.toml:1:10: listen: \"tcp://0.0.0.0:1\" is no address: write unix:PATH, as in \
         unix:/run/refrain.sock",
    );
    refuses(
        "listen = \"unix:\"",
        "refrain.toml:1:10: listen: \"unix:\" has no path: write unix:PATH, as in \
         unix:/run/refrain.sock",
    );
    refuses("metrics = \"localhost\"", "refrain.toml:1:11: metrics: invalid socket address syntax");
    refuses(
        "sessions_max = \"many\"",
        "refrain.toml:1:16: sessions_max: invalid type: string \"many\", expected u32",
    );
    refuses(
        &format!("{DRIVE}[[drives]]\npath = \"/b\"\ncapacity = true\n"),
        "refrain.toml:6:12: drives[1].capacity: invalid type: boolean `true`, expected bytes, as a \
         number or as in \"100GiB\"",
    );
}

#[test]
fn text_that_is_no_toml_and_a_drive_without_its_keys_are_refused_in_place() {
    let error = parse("sessions_max = 3\nlisten = \n").unwrap_err();
    assert!(error.starts_with("refrain.toml:2:"), "{error}");
    let error = parse("drain = \"1s\"\ndrain = \"2s\"\n").unwrap_err();
    assert_eq!(error, "refrain.toml:2:1: duplicate key");
    refuses("\n[[drives]]\npath = \"/a\"\n", "refrain.toml:2:1: missing key `capacity`");
}

#[test]
fn values_out_of_bounds_are_refused_at_their_place() {
    let drive = |lines: &str| format!("[[drives]]\npath = \"/a\"\n{lines}");
    refuses(
        &drive("capacity = \"20MiB\"\n"),
        "refrain.toml:3:1: drives[0].capacity: 20.0 MiB (20971520 bytes) holds fewer than two \
         segments of 16.0 MiB",
    );
    refuses(
        &drive("capacity = \"1GiB\"\nsegment = \"600MiB\"\n"),
        "refrain.toml:3:1: drives[0].capacity: 1.0 GiB (1073741824 bytes) holds fewer than two \
         segments of 600.0 MiB",
    );
    refuses(
        &drive("capacity = \"1GiB\"\nsegment = \"64KiB\"\n"),
        "refrain.toml:4:1: drives[0].segment: 64.0 KiB (65536 bytes) is not within 1.0 MiB and \
         16.0 GiB",
    );
    refuses(
        &drive("capacity = \"1GiB\"\nsegment = \"10MB\"\n"),
        "refrain.toml:4:1: drives[0].segment: 10000000 bytes are not whole pages of 4096: write \
         KiB, MiB or GiB, not KB, MB or GB",
    );
    refuses(
        &format!("{DRIVE}[[drives]]\npath = \"/./a/\"\ncapacity = \"1GiB\"\n"),
        "refrain.toml:5:1: drives[1].path: /./a/ is drives[0] already",
    );
    refuses(
        "lease_default = \"2m\"",
        "refrain.toml:1:1: lease_default: 120s is longer than lease_max, 60s",
    );
    refuses(
        "drain = \"1s\"\nlease_max = \"5s\"",
        "refrain.toml:2:1: lease_default: 10s is longer than lease_max, 5s",
    );
    refuses("lease_max = \"2h\"", "refrain.toml:1:1: lease_max: 7200s is not within 1ms and 3600s");
    refuses(
        "load_deadline = \"0s\"",
        "refrain.toml:1:1: load_deadline: 0ns is not within 1ms and 600s",
    );
    refuses("sessions_max = 0", "refrain.toml:1:1: sessions_max: 0 is not within 1 and 65536");
    refuses(
        "save_queue = 5",
        "refrain.toml:1:1: save_queue: 5 B (5 bytes) is not within 1.0 MiB and 16.0 TiB",
    );
    refuses(
        "socket_mode = 660",
        "refrain.toml:1:1: socket_mode: 0o1224 are no permissions of a socket that its owner may \
         use: write 0o600 or 0o660",
    );
    let long = "x".repeat(99);
    refuses(
        &format!("listen = \"unix:/{long}\""),
        &format!(
            "refrain.toml:1:10: listen: socket path /{long} has 100 bytes; beside its session \
             socket at most 99 fit: listen on a shorter one"
        ),
    );
    let error = parse(&format!("[[drives]]\npath = \"/{long}\"\ncapacity = \"1GiB\"")).unwrap_err();
    assert!(error.starts_with("refrain.toml:2:1: listen: socket path /x"), "{error}");
}

#[test]
fn file_without_a_drive_waits_for_flags_and_no_start_does_without() {
    let config = parse("sessions_max = 3").unwrap();
    let expected = "no drive: give the directory and the capacity of at least one";
    assert_eq!(config.validate().unwrap_err().to_string(), expected);
    assert_eq!(config.listen(), None);
}

#[test]
fn what_flags_made_is_checked_as_a_file_is() {
    refuses_to_start(
        |config| config.drives.push(config.drives[0].clone()),
        "drives[1].path: /a is drives[0] already",
    );
    refuses_to_start(
        |config| config.drives = vec![config.drives[0].clone(); 65],
        "drives: 65 of them, at most 64 fit",
    );
    refuses_to_start(
        |config| config.drives[0].path = PathBuf::new(),
        "drives[0].path: empty: give a directory",
    );
    refuses_to_start(
        |config| config.load_arena = 4097 << 10,
        "load_arena: 4195328 bytes are not whole pages of 4096: write KiB, MiB or GiB, not KB, MB \
         or GB",
    );
    refuses_to_start(
        |config| config.load_arena = 1 << 43,
        &format!(
            "load_arena: 8796093022208 bytes are more than the {} of this machine's memory",
            total_memory()
        ),
    );
}

#[test]
fn file_that_cannot_be_read_is_named() {
    let error = Config::read(Path::new("/nowhere/refrain.toml")).unwrap_err();
    assert_eq!(error.to_string(), "read config /nowhere/refrain.toml");
}

#[test]
fn sizes_and_times_are_read_as_people_write_them() {
    let sizes =
        [("4096", 4096), ("100GiB", 100 << 30), ("1.5 kib", 1536), ("2TB", 2_000_000_000_000)];
    for (text, bytes) in sizes {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for text in ["", "GiB", "-1GiB", "1e3", "99999999999EiB", "1 GiB per day"] {
        assert_eq!(parse_size(text), Err(UnitError::Size { text: text.into() }));
    }
    let times =
        [("10s", 10_000_000), ("50ms", 50_000), ("2 m", 120_000_000), ("1h", 3_600_000_000)];
    for (text, microseconds) in times {
        assert_eq!(parse_duration(text), Ok(Duration::from_micros(microseconds)), "{text}");
    }
    for text in ["", "10", "s", "1.5s", "-1s", "99999999999999999h", "1d", "10s later"] {
        assert_eq!(parse_duration(text), Err(UnitError::Duration { text: text.into() }));
    }
}

#[test]
fn beyond_this_machine_peers_are_talked_to_inside_tls_or_by_an_explicit_word() {
    let peers = |lines: &str| parse(&format!("{DRIVE}[peers]\n{lines}\n"));
    let refused = |lines: &str, expected: &str| {
        let error = peers(lines).unwrap_err();
        assert!(error.contains(expected), "{lines}: {error}");
    };
    refused("listen = \"10.0.0.7:9470\"", "refrain.toml:5:1: peers.listen: 10.0.0.7 is beyond");
    refused("ask = [\"10.0.0.7:9470\"]", "peers.ask: 10.0.0.7 is beyond this machine");
    refused("ask = [\"[fd00::7]:9470\"]", "peers.ask: fd00::7 is beyond this machine");
    refused("listen = \"127.0.0.1:1\"\ndata_listen = \"0.0.0.0:2\"", "peers.data_listen: 0.0.0.0");
    peers("listen = \"127.0.0.5:9470\"\nask = [\"[::1]:9470\"]").unwrap();
    peers("listen = \"10.0.0.7:9470\"\nplain_text = true").unwrap();
    let tls = "tls_ca = \"a\"\ntls_certificate = \"b\"";
    refused(tls, "peers.tls_key: missing");
    peers(&format!("{tls}\ntls_key = \"c\"\nlisten = \"10.0.0.7:9470\"")).unwrap();
    refused("data_listen = \"127.0.0.1:1\"", "given without peers.listen");
    refused("lookup_deadline = \"11s\"", "peers.lookup_deadline: 11s is not within 1ms and 10s");
}

#[test]
fn a_peer_is_a_host_and_a_port() {
    for good in ["10.0.0.7:9470", "node-7:1", "[fd00::7]:65535"] {
        let peer: PeerAddress = good.parse().unwrap();
        assert_eq!(peer.to_string(), good);
    }
    assert_eq!("[fd00::7]:1".parse::<PeerAddress>().unwrap().host(), "fd00::7");
    for bad in ["", ":1", "node", "node:0", "node:65536", "fd00::7", "fd00::7:1", "a b:1"] {
        assert!(bad.parse::<PeerAddress>().is_err(), "{bad}");
    }
}
