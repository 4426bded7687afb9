//! The three commands as a person uses them.

use zephserver_testkit::{Build, Command, TestServer};

#[test]
fn tables_fit_80_columns_and_never_cut_names() {
    let settings = "[\"@a-rather-long-name-for-an-instance\"]\nfail = \"refuse\"\noptional = true";
    let services = ["hello/Hello", "trouble/Trouble@a-rather-long-name-for-an-instance"];
    let server = TestServer::with(&services).settings(settings).start();
    for verb in ["status", "services", "plugins", "help"] {
        let shown = server.command(&[verb]);
        assert_eq!(shown.code, Some(0), "{shown:?}");
        for line in shown.stdout.lines() {
            assert!(line.chars().count() <= 80, "{verb}: {line:?}");
        }
        assert!(!shown.stdout.contains('\x1b'));
    }
    assert!(server.command(&["status"]).stdout.contains(services[1]));
}

#[test]
fn json_is_json() {
    let server = TestServer::with(&["hello/Hello"]).start();
    for words in [["status", "--json"], ["--json", "services"]] {
        let shown = server.command(&words);
        serde_json::from_str::<serde_json::Value>(&shown.stdout).unwrap();
    }
    let error = server.command(&["call", "hello", "nope/1", "--json"]);
    assert_eq!(error.code, Some(2));
    let error: serde_json::Value = serde_json::from_str(&error.stdout).unwrap();
    assert_eq!(error["error"]["code"], "unsupported");
}

#[test]
fn exit_codes_and_what_to_type_next() {
    let server = TestServer::with(&["hello/Hello"]).start();
    let unknown = server.command(&["restart", "helo"]);
    assert_eq!(unknown.code, Some(5));
    assert!(unknown.stderr.contains("`hello/Hello`") || unknown.stderr.contains("services"), "{unknown:?}");
    assert_eq!(server.command(&["call", "hello", "greet/1", "\"Ann\""]).stdout, "\"Hello, Ann!\"\n");
    let nobody = Command::new("zephserver-stop").args([server.path("no.sock")]).run();
    assert_eq!(nobody.code, Some(4));
    assert!(nobody.stderr.contains("no.sock") && nobody.stderr.contains("zephserver-start"), "{nobody:?}");
    assert_eq!(Command::new("zephserver").run().code, Some(2));
}

#[test]
fn a_library_that_nobody_listed_is_not_opened_until_it_is_asked_for() {
    let server = TestServer::with(&["hello/Hello"]);
    server.install("trouble", &Build::of("trouble"));
    server.install("broken", &Build::of("trouble").truncated(1000));
    let server = server.start();
    let list = server.ask("plugins").unwrap();
    let trouble = list.as_array().unwrap().iter().find(|plugin| plugin["name"] == "trouble").unwrap();
    assert_eq!(trouble["loaded"], false);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
    assert!(!maps.contains("trouble"));
    server.ask("start trouble/Counter").unwrap();
    assert_eq!(server.call("trouble/Counter", "add/1", "2").unwrap(), 2);
    let refused = server.ask("start broken").unwrap_err();
    assert!(refused.text.contains("not complete"), "{refused}");
    assert_eq!(server.ask("start nowhere").unwrap_err().code.name(), "not_found");
}

#[test]
fn disable_restart_start() {
    let server = TestServer::with(&["hello/Hello"]).start();
    server.ask("disable hello").unwrap();
    assert_eq!(server.service("hello")["state"], "available");
    let error = server.call("hello", "greet/1", "\"Ann\"").unwrap_err();
    assert!(error.text.contains("zephserver start hello/Hello"), "{error}");
    server.ask("start hello").unwrap();
    server.ask("restart hello/Hello").unwrap();
    assert_eq!(server.call("hello", "greet/1", "\"Ann\"").unwrap(), "Hello, Ann!");
}
