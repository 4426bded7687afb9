//! Builds that must not take over: each is refused with its reason, and the old one serves on.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use zephserver_testkit::{Build, TestServer};

use crate::reload::build;

/// Drops a file in, asks for a reload, expects it refused, and that nothing has changed.
fn refused(server: &TestServer, build: &Build, parts: &[&str]) {
    server.install("trouble", build);
    refused_now(server, parts);
}

fn refused_now(server: &TestServer, parts: &[&str]) {
    let before = server.call("trouble/Counter", "get/1", "").unwrap();
    let error = server.ask("reload trouble").unwrap_err();
    for part in parts {
        assert!(error.text.contains(part), "{part:?} not in: {error}");
    }
    let service = server.service("trouble/Counter");
    assert_eq!((service["state"].as_str(), service["generation"].as_u64()), (Some("enabled"), Some(1)));
    assert!(service["refused"].as_str().unwrap().contains(parts[0]), "{service}");
    assert_eq!(server.call("trouble/Counter", "build/1", "").unwrap(), "one");
    assert_eq!(server.call("trouble/Counter", "get/1", "").unwrap(), before, "nothing is lost");
    assert!(server.log().contains("not reloaded, the old generation serves on"));
}

fn counter() -> TestServer {
    let settings = "[server]\nwatch = false\n[trouble]\nstart_timeout = 1";
    let server = TestServer::with(&["trouble/Counter"]).settings(settings).start();
    server.call("trouble", "add/1", "3").unwrap();
    server
}

#[test]
fn files_that_are_no_whole_library() {
    let server = counter();
    let good = build("name=two state=1");
    refused(&server, &good.clone().truncated(good.len() / 2), &["not complete"]);
    refused(&server, &good.clone().truncated(good.len() - 1), &["not complete"]);
    refused(&server, &good.clone().truncated(10), &["not complete"]);
    refused(&server, &good.clone().truncated(0), &["no ELF library"]);
    refused(&server, &Build::of("hello"), &["it is the plugin `hello`", "libhello.so"]);
    server.install("trouble", &good);
    server.ask("reload trouble").unwrap();
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), 3);
}

#[test]
fn files_that_others_could_have_written() {
    let server = counter();
    server.install("trouble", &build("name=two state=1"));
    std::fs::set_permissions(server.library("trouble"), PermissionsExt::from_mode(0o646)).unwrap();
    refused_now(&server, &["can be written by others", "chmod o-w"]);
    std::fs::remove_file(server.library("trouble")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", server.library("trouble")).unwrap();
    refused_now(&server, &["symbolic link"]);
}

#[test]
fn a_half_written_file_is_waited_for() {
    let mut server = TestServer::with(&["trouble/Counter"]).start();
    let (file, new) = (server.library("trouble"), build("name=two state=1"));
    let (first, second) = new.bytes().split_at(new.len() / 2);
    std::fs::write(&file, first).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(400));
    assert_eq!(server.call("trouble", "build/1", "").unwrap(), "one");
    let mut rest = std::fs::OpenOptions::new().append(true).open(&file).unwrap();
    std::io::Write::write_all(&mut rest, second).unwrap();
    drop(rest);
    server.wait("the whole build serves", |server| {
        (server.call("trouble", "build/1", "").unwrap() == "two").then_some(())
    });
}

#[test]
fn builds_that_panic() {
    for step in ["declare", "create", "import", "init", "main"] {
        let server = counter();
        refused(
            &server,
            &build(&format!("name=two state=1 fail={step}")),
            &["told to panic in", step, "lib.rs:"],
        );
    }
}

#[test]
fn builds_that_hang() {
    for (step, part) in [
        ("create", "create took longer than"),
        ("import", "took longer than 500 ms"),
        ("init", "took longer than 500 ms"),
    ] {
        let server = counter();
        refused(&server, &build(&format!("name=two state=1 hang={step}")), &[part]);
        assert_eq!(server.stop().code, Some(0), "a hanging candidate does not hold up the stop");
    }
}

#[test]
fn an_old_build_that_fails_to_hand_over_serves_on() {
    for step in ["freeze", "export"] {
        let server =
            TestServer::with(&["trouble/Counter"]).settings(&format!("[trouble]\nfail = \"{step}\"")).start();
        server.call("trouble", "add/1", "3").unwrap();
        let error = server.ask("reload trouble").unwrap_err();
        assert!(error.text.contains(&format!("told to panic in {step}")), "{error}");
        assert_eq!(server.call("trouble", "get/1", "").unwrap(), 3);
    }
}

#[test]
fn an_old_build_that_panics_in_thaw_is_open_again() {
    let mut server = TestServer::with(&["trouble/Counter"]).settings("[trouble]\nfail = \"thaw\"").start();
    server.call("trouble", "add/1", "3").unwrap();
    server.install("trouble", &build("name=two state=1 fail=init"));
    server.ask("reload trouble").unwrap_err();
    server.wait_log("thaw of the old instance failed");
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), 3);
}

#[test]
fn a_refused_file_is_not_tried_again_by_itself() {
    let mut server = TestServer::with(&["trouble/Counter"]).start();
    let file = server.library("trouble");
    build("name=two state=1 fail=init").put(&file);
    server.wait_service("trouble", "refused", |service| service["refused"].is_string());
    let tried = server.log().matches("not reloaded").count();
    build("name=two state=1 fail=init").put(&file);
    build("name=three state=1").put(&file);
    server.wait("the good build serves", |server| {
        (server.call("trouble", "build/1", "").unwrap() == "three").then_some(())
    });
    assert_eq!(server.log().matches("not reloaded").count(), tried);
    assert!(server.service("trouble")["refused"].is_null());
}

/// Compiles C to a library.
fn compile(server: &TestServer, source: &str, extra: &[&str]) -> std::path::PathBuf {
    let (c, library) =
        (server.path("plugins/source.c"), server.library("trouble").with_extension("compiled"));
    std::fs::write(&c, source).unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&c).args(extra).output();
    let compiled = compiled.expect("cc is there, as rustc needs it");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

#[test]
fn libraries_that_are_no_plugin_or_of_another_abi() {
    let server = counter();
    let plain = compile(&server, "int answer(void) { return 42; }", &[]);
    std::fs::rename(plain, server.library("trouble")).unwrap();
    refused_now(&server, &["no zephserver plugin"]);
    let other = compile(&server, "const char zephserver_plugin_root_v1[4096] = \"another ABI\";", &[]);
    std::fs::rename(other, server.library("trouble")).unwrap();
    refused_now(&server, &["build it again with this server's SDK"]);
}

#[test]
fn old_code_that_answers_for_a_new_file_is_caught() {
    let server = counter();
    // A library without code of its own, whose dependency is the copy that is loaded already.
    let copies = server.path(".zephserver/copies/trouble");
    let copy = std::fs::read_dir(copies).unwrap().next().unwrap().unwrap().path();
    let lie = compile(&server, "int nothing;", &["-Wl,--no-as-needed", copy.to_str().unwrap()]);
    std::fs::rename(lie, server.library("trouble")).unwrap();
    refused_now(&server, &["old code answers for the new file"]);
}

/// The plugin in tests/fixtures/first-day is as old as the ABI itself.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_plugin_of_the_first_day_still_works() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/first-day/libhello.so");
    let server = TestServer::with(&["hello/Hello"]);
    std::fs::copy(file, server.library("hello")).unwrap();
    let server = server.settings("[hello]\ngreeting = \"Moin\"").start();
    assert_eq!(server.call("hello", "greet/1", "\"Ann\"").unwrap(), "Moin, Ann!");
    assert_eq!(server.call("hello", "nope/1", "").unwrap_err().code.name(), "unsupported");
    assert_eq!(server.call("hello", "greet/1", "7").unwrap_err().code.name(), "invalid");
    server.install("hello", &Build::of("hello"));
    server.ask("reload hello").unwrap();
    assert_eq!(server.call("hello", "greet/1", "\"Ann\"").unwrap(), "Moin, Ann!");
}
