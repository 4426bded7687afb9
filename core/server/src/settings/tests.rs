use zeph_abi::{ServiceDeclaration, SettingDeclaration, SettingType};

use super::*;

const BASE: &str = "LOCK_FILE = \"l\"\nCONFIGURATION_NETWORK_INTERFACE_SERVER = \"s\"\n";

fn parse(rest: &str) -> Result<Settings, Faults> {
    Settings::parse(Path::new("/x/settings.toml"), &format!("{BASE}{rest}"))
}

fn fault(rest: &str) -> String {
    parse(rest).unwrap_err().to_string()
}

#[test]
fn the_shipped_file_is_in_order() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../settings.toml");
    let settings = Settings::read(Path::new(file)).unwrap();
    assert_eq!(settings.limits, Limits::default());
    assert!(settings.plugin_path[0].ends_with("target/release"));
}

#[test]
fn paths_are_relative_to_the_file() {
    let settings = parse("SERVICE_LIST = []\nPLUGIN_PATH = [\"./p\", \"/q\"]\n").unwrap();
    assert_eq!(settings.lock_file, Path::new("/x/l"));
    assert_eq!(settings.state_path, Path::new("/x/.zephserver"));
    assert_eq!(settings.plugin_path, [Path::new("/x/p"), Path::new("/q")]);
    assert_eq!(settings.log_path.as_deref(), Some(Path::new("/x/logging.log")));
    assert_eq!(parse("SERVICE_LIST = []\nLOG_PATH = \"\"").unwrap().log_path, None);
}

#[test]
fn log_files_and_the_address_of_the_server_itself() {
    let settings = parse("SERVICE_LIST = []\n[server]\nlog_size = 0\nlog_files = 100\n").unwrap();
    assert_eq!((settings.limits.log_size, settings.limits.log_files), (0, 100));
    assert_eq!(settings.http_address, None);
    for address in ["127.0.0.1:9100", "127.1.2.3:0", "[::1]:9100"] {
        let settings = parse(&format!("SERVICE_LIST = []\n[server]\nhttp_address = \"{address}\""));
        assert_eq!(settings.unwrap().http_address.unwrap().to_string(), address);
    }
}

#[test]
fn faults_name_line_reason_and_nearest_name() {
    for (file, parts) in [
        ("SERVICE_LIST = []\nLOG_LEVL = \"INFO\"", &[":4:", "LOG_LEVL"][..]),
        ("SERVICE_LIST = []\nlog_level = \"INFO\"", &[":4:", "unknown key log_level", "`LOG_LEVEL`"]),
        ("SERVICE_LIST = 3", &[":3:", "a whole number", "a list"]),
        ("SERVICE_LIST = [\n \"a/B\",\n \"a/B\"]", &[":5:", "a/B is named twice", "line 4"]),
        ("SERVICE_LIST = [\"ab\"]", &[":3:", "library/Service"]),
        ("SERVICE_LIST = []\nLOG_LEVEL = \"INFOO\"", &[":4:", "INFOO", "`INFO`"]),
        ("SERVICE_LIST = []\n[server]\ncall_timout = 3", &[":5:", "[server] call_timout", "`call_timeout`"]),
        ("SERVICE_LIST = []\n[server]\ngate_timeout = -1", &[":5:", "seconds above 0"]),
        ("SERVICE_LIST = []\n[server]\npool_threads = 0", &[":5:", "expected a whole number from 1 to 1024"]),
        ("SERVICE_LIST = []\n[server]\nlog_files = 101", &[":5:", "log_files", "from 0 to 100"]),
        ("SERVICE_LIST = []\n[server]\nlog_size = -1", &[":5:", "log_size", "from 0"]),
        ("SERVICE_LIST = []\n[server]\nhttp_address = 9100", &[":5:", "a whole number", "a text"]),
        (
            "SERVICE_LIST = []\n[server]\nhttp_address = \"localhost\"",
            &[":5:", "\"localhost\"", "127.0.0.1:9100"],
        ),
        (
            "SERVICE_LIST = []\n[server]\nhttp_address = \"[::]:91\"",
            &[":5:", "[::]:91", "127.0.0.1:91", "proxy"],
        ),
        ("SERVICE_LIST = []\nCLUSTER_SERVER_LIST = [{ hostname = \"a\" }]", &[":4:", "address"]),
        ("SERVICE_LIST = [", &["not TOML"]),
    ] {
        let text = match parse(file) {
            Err(faults) => faults.to_string(),
            Ok(settings) => unclaimed(&settings, std::iter::empty()).unwrap_err().to_string(),
        };
        parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} not in: {text}"));
    }
    assert!(fault("").contains("SERVICE_LIST is missing"));
}

#[test]
fn a_new_build_may_go_unwatched() {
    let watched = |line: &str| {
        parse(&format!("SERVICE_LIST = []\n[server]\n{line}"))
            .map(|settings| settings.limits.watch_after_reload)
    };
    assert_eq!(watched("").unwrap(), Duration::from_secs(10));
    assert_eq!(watched("watch_after_reload = 0").unwrap(), Duration::ZERO);
    assert_eq!(watched("watch_after_reload = 0.5").unwrap(), Duration::from_millis(500));
    assert!(fault("SERVICE_LIST = []\n[server]\nwatch_after_reload = -1").contains("0 for never"));
}

fn declaration() -> ServiceDeclaration {
    let setting = |name: &str, value_type, alias: Option<&str>| SettingDeclaration {
        name: name.into(),
        value_type,
        default: serde_json::json!(null),
        required: name == "must",
        alias: alias.map(Into::into),
        doc: String::new(),
    };
    ServiceDeclaration {
        kind: "B".into(),
        settings: vec![
            setting("port", SettingType::Integer, Some("PORT_ZEPH")),
            setting("must", SettingType::Text, None),
        ],
        ..ServiceDeclaration::default()
    }
}

fn check(rest: &str) -> Result<ServiceSettings, Faults> {
    let settings = parse(&format!("SERVICE_LIST = [\"a/B\", \"a/B@two\"]\n{rest}")).unwrap();
    let service = settings.services[usize::from(rest.contains('@'))].clone();
    check_service(&settings, &service, &declaration(), &[])
}

#[test]
fn a_plugin_gets_its_table_its_aliases_and_its_instance() {
    let checked = check("PORT_ZEPH = 8080\n[a]\nmust = \"x\"\noptional = true\nstop_timeout = 0.5").unwrap();
    assert_eq!(checked.values["port"], 8080);
    assert!(checked.options.optional);
    assert_eq!(checked.options.stop_timeout, Duration::from_millis(500));
    assert_eq!(checked.options.reload, Reload::Automatic);
    let checked = check("[a]\nmust = \"x\"\nreload = \"manual\"").unwrap();
    assert_eq!(checked.options.reload, Reload::Manual);
    let checked = check("[a]\nmust = \"x\"\n[\"a@two\"]\nmust = \"y\"").unwrap();
    assert_eq!(checked.values["must"], "y");
}

#[test]
fn a_plugins_faults_name_their_lines() {
    let text = |rest| check(rest).unwrap_err().to_string();
    assert!(text("[a]\nprt = 1").contains(":5: unknown key [a] prt"));
    assert!(text("[a]\nprt = 1").contains("`port`"));
    assert!(text("[a]\nport = \"1\"\nmust = \"\"").contains("expected a whole number"));
    assert!(text("[a]\nport = 1").contains("needs [a] must"));
    let reload = text("[a]\nmust = \"\"\nreload = \"sometimes\"");
    assert!(reload.contains(":6: reload is") && reload.contains("\"auto\" or \"manual\""), "{reload}");
    let twice = text("PORT_ZEPH = 1\n[a]\nmust = \"\"\nport = 2");
    assert!(twice.contains("line 4") && twice.contains("line 7"), "{twice}");
}

#[test]
fn what_nobody_claims_is_said() {
    let settings = parse("SERVICE_LIST = [\"a/B\"]\nPORT_ZEPH = 1\nSAME_DOMAIN = true\n").unwrap();
    let lines = unclaimed(&settings, [&declaration()].into_iter()).unwrap();
    assert_eq!(lines, ["line 5: SAME_DOMAIN has no effect: no plugin in SERVICE_LIST claims it"]);
}

fn cluster(rest: &str) -> Result<ClusterSettings, String> {
    let settings = parse(&format!("SERVICE_LIST = []\n{rest}"));
    settings.map(|settings| settings.cluster).map_err(|faults| faults.to_string())
}

#[test]
fn a_cluster_is_where_others_are_named() {
    let alone = cluster("").unwrap();
    assert_eq!((alone.engine, alone.listen), (EngineKind::Local, None));
    assert!(!alone.node.is_empty(), "the machine's name");
    let entry = |name: &str, place: &str| {
        let (address, port) = place.rsplit_once(':').unwrap();
        format!("{{ hostname = \"{name}\", address = \"{address}\", port = {port} }}")
    };
    let list = |entries: &[String]| format!("CLUSTER_SERVER_LIST = [{}]\n", entries.join(", "));
    let one = cluster(&list(&[entry("a", "127.0.0.1:1")])).unwrap();
    assert_eq!(one.engine, EngineKind::Local);
    let two = list(&[entry("a", "127.0.0.1:1"), entry("b", "::1:2")]);
    let found = cluster(&format!("{two}[cluster]\nnode = \"a\"\nseeds = [\"c:3\"]")).unwrap();
    assert_eq!(found.engine, EngineKind::Mesh);
    assert_eq!(found.listen.as_deref(), Some("127.0.0.1:1"));
    assert_eq!(found.seeds, ["c:3", "[::1]:2"]);
    let other = cluster(&format!("{two}[cluster]\nnode = \"b\"\nlisten = \"127.0.0.1:9\"")).unwrap();
    assert_eq!(
        (other.listen.as_deref(), &other.seeds[..]),
        (Some("127.0.0.1:9"), &["127.0.0.1:1".into()][..])
    );
    let seeded =
        cluster("[cluster]\nseeds = [\"h:1\"]\nlisten = \"127.0.0.1:0\"\nprofile = \"fast\"").unwrap();
    assert_eq!((seeded.engine, seeded.profile.as_str()), (EngineKind::Mesh, "fast"));
    let first = cluster("[cluster]\nengine = \"mesh\"\nlisten = \"127.0.0.1:0\"").unwrap();
    assert_eq!((first.engine, first.seeds), (EngineKind::Mesh, vec![]));
    let off = cluster(&format!("{two}[cluster]\nengine = \"local\"")).unwrap();
    assert_eq!((off.engine, off.listen), (EngineKind::Local, None));
    let key = "[cluster]\nengine = \"mesh\"\nlisten = \"10.0.0.1:1\"\nkey_file = \"k\"";
    assert_eq!(cluster(key).unwrap().key_file.as_deref(), Some(Path::new("/x/k")));
}

#[test]
fn faults_of_a_cluster_name_their_lines() {
    let two = "CLUSTER_SERVER_LIST = [{ hostname = \"a\", address = \"h\", port = 1 }, { hostname = \"b\", address = \
               \"h\", port = 2 }]\n";
    for (rest, parts) in [
        (format!("{two}[cluster]\nnode = \"c\""), &[":4:", "no entry for this node, `c`", "a, b"][..]),
        (two.replace("\"b\"", "\"a\""), &[":4:", "names `a` twice"]),
        ("[cluster]\nengine = \"mash\"".into(), &[":5:", "local, mesh, nats", "`mesh`"]),
        ("[cluster]\nengine = \"mesh\"".into(), &[":5:", "listen is missing", "listen = "]),
        ("[cluster]\nseeds = [\"h\"]\nlisten = \"h:1\"".into(), &[":5:", "HOST:PORT"]),
        ("[cluster]\nseeds = \"h:1\"".into(), &[":5:", "a text", "a list"]),
        ("[cluster]\nengine = \"mesh\"\nlisten = \"here\"".into(), &[":6:", "\"here\"", "HOST:PORT"]),
        ("[cluster]\nengine = \"mesh\"\nlisten = \"0.0.0.0:1\"".into(), &[":6:", "under which others reach"]),
        (
            "[cluster]\nengine = \"mesh\"\nlisten = \"10.0.0.1:1\"".into(),
            &[":6:", "no key", "zephserver cluster key"],
        ),
        ("[cluster]\nprofile = \"wan\"".into(), &[":5:", "lan, fast", "`lan`"]),
        ("[cluster]\nnode = \"\"".into(), &[":5:", "1 to 255"]),
        ("[cluster]\nengine = \"nats\"".into(), &[":5:", "url is missing", "nats://"]),
        ("[cluster]\nnods = \"a\"".into(), &[":5:", "[cluster] nods", "`node`"]),
        ("[cluster]\nlisten = 22631".into(), &[":5:", "a whole number", "a text"]),
    ] {
        let text = cluster(&rest).unwrap_err();
        parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} not in: {text}"));
    }
}
