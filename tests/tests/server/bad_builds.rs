//! Builds that must not take over: each is refused with its reason, and the old one serves on, also for
//! somebody who calls all the time.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;
use zephserver_testkit::{Build, TestServer};

use crate::caller::Caller;
use crate::reload::build;

/// How a bad file is put in its place, and what is said of it.
type Row = (fn(&TestServer), &'static [&'static str]);

/// Files that are refused before any code of theirs runs, or as soon as they are loaded.
const FILES: &[Row] = &[
    (|server| cut(server, |length| length / 2), &["not complete"]),
    (|server| cut(server, |length| length - 1), &["not complete"]),
    (|server| cut(server, |_| 10), &["not complete"]),
    (|server| cut(server, |_| 0), &["no ELF library"]),
    (|server| put(server, b"#!/bin/sh\necho hello\n"), &["no ELF library"]),
    (|server| server.install("trouble", &Build::of("hello")), &["it is the plugin `hello`", "libhello.so"]),
    (|server| compiled(server, "int answer(void) { return 42; }", &[]), &["no zephserver plugin"]),
    (
        |server| compiled(server, "int nowhere(void); int answer(void) { return nowhere(); }", &[]),
        &["the loader refuses it", "undefined symbol: nowhere"],
    ),
    (
        |server| {
            compiled(server, "const char zephserver_plugin_root_v1[4096] = \"another ABI\";", &[]);
        },
        &["build it again with this server's SDK"],
    ),
    (old_code, &["old code answers for the new file"]),
    (open_to_others, &["it can be written by others", "chmod o-w", "libtrouble.so"]),
    (linked, &["symbolic link"]),
];

/// Builds for a service with state, by their words. A step that hangs costs `gate_timeout`, or
/// `start_timeout` where nobody is held up yet.
const BUILDS: &[(&str, &[&str])] = &[
    ("name=two state=1 fail=declare", &["told to panic in declare", "lib.rs:"]),
    (
        "name=two state=1 fail=create",
        &["create of the new instance failed", "told to panic in create", "lib.rs:"],
    ),
    ("name=two state=1 fail=import", &["import_state of the new instance failed", "told to panic in import"]),
    ("name=two state=1 fail=init", &["init of the new instance failed", "told to panic in init", "lib.rs:"]),
    ("name=two state=1 fail=main reports=1", &["main of the new instance failed", "told to panic in main"]),
    ("name=two state=1 hang=create", &["create took longer than 1000 ms"]),
    ("name=two state=1 hang=import", &["import_state or init of the new instance took longer than 500 ms"]),
    ("name=two state=1 hang=init", &["import_state or init of the new instance took longer than 500 ms"]),
    ("name=two state=1 hang=main reports=1", &["getting ready of the new instance took longer than 500 ms"]),
    ("name=two state=3", &["cannot import version 1", "built with SDK", "the old one with"]),
];

/// The same for a service without state: nobody is ever held up, and all has `start_timeout`.
const SWAPS: &[(&str, &[&str])] = &[
    ("name=two fail=create", &["create of the new instance failed", "told to panic in create"]),
    ("name=two fail=init", &["init of the new instance failed", "told to panic in init"]),
    ("name=two fail=main reports=1", &["main of the new instance failed", "told to panic in main"]),
    ("name=two hang=create", &["create took longer than 1000 ms"]),
    ("name=two hang=init", &["import_state or init of the new instance took longer than 1000 ms"]),
    ("name=two hang=main reports=1", &["getting ready of the new instance took longer than 1000 ms"]),
];

/// Puts bytes into the place of the library.
fn put(server: &TestServer, bytes: &[u8]) {
    let beside = server.library("trouble").with_extension("new");
    std::fs::write(&beside, bytes).unwrap();
    std::fs::rename(&beside, server.library("trouble")).unwrap();
}

/// A good build, cut off.
fn cut(server: &TestServer, length: fn(usize) -> usize) {
    let good = build("name=two state=1");
    let length = length(good.len());
    server.install("trouble", &good.truncated(length));
}

/// Compiles C to the library.
fn compiled(server: &TestServer, source: &str, extra: &[&str]) {
    let (c, library) =
        (server.path("plugins/source.c"), server.library("trouble").with_extension("compiled"));
    std::fs::write(&c, source).unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&c).args(extra).output();
    let compiled = compiled.expect("cc is there, as rustc needs it");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    std::fs::rename(library, server.library("trouble")).unwrap();
}

/// A library without code of its own, whose dependency is the copy that is loaded already.
fn old_code(server: &TestServer) {
    let copies = std::fs::read_dir(server.path(".zephserver/copies/trouble")).unwrap();
    let mut copies = copies.map(|entry| entry.unwrap().path());
    let first = copies.find(|copy| copy.file_name().unwrap().to_string_lossy().starts_with("0001-")).unwrap();
    compiled(server, "int nothing;", &["-Wl,--no-as-needed", first.to_str().unwrap()]);
}

fn open_to_others(server: &TestServer) {
    server.install("trouble", &build("name=two state=1"));
    std::fs::set_permissions(server.library("trouble"), PermissionsExt::from_mode(0o646)).unwrap();
}

fn linked(server: &TestServer) {
    std::fs::remove_file(server.library("trouble")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", server.library("trouble")).unwrap();
}

/// Asks for a reload of what lies there, and expects it refused: in the answer, in the log and in `status`.
fn refused(server: &TestServer, parts: &[&str]) {
    let known = server.log().len();
    let error = server.ask("reload trouble").unwrap_err();
    for part in parts {
        assert!(error.text.contains(part), "{part:?} not in: {error}");
    }
    let service = server.service("trouble");
    assert_eq!((service["state"].as_str(), service["generation"].as_u64()), (Some("enabled"), Some(1)));
    assert!(service["refused"].as_str().unwrap().contains(parts[0]), "{service}");
    let log = server.log().split_off(known);
    assert!(log.contains("not reloaded, the old generation serves on"), "{log}");
    assert!(log.contains(parts[0]), "{log}");
}

/// With a service that keeps state, which counts three already.
fn counter() -> TestServer {
    let settings = "[server]\nwatch = false\n[trouble]\nstart_timeout = 1";
    let server = TestServer::with(&["trouble/Counter"]).settings(settings).start();
    server.call("trouble", "add/1", "3").unwrap();
    server
}

/// After all that was refused: nothing was lost, and a good build takes over.
fn nothing_was_lost(server: &TestServer, caller: Caller) {
    let count = 3 + caller.end();
    assert_eq!(server.call("trouble", "build/1", "").unwrap(), "one");
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), count);
    server.install("trouble", &build("name=two state=1"));
    server.ask("reload trouble").unwrap();
    assert_eq!(server.call("trouble", "build/1", "").unwrap(), "two");
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), count);
    assert_eq!(server.service("trouble")["refused"], Value::Null);
}

#[test]
fn bad_files() {
    let mut server = counter();
    let caller = Caller::of(&server, "call trouble add/1 1");
    for (put_there, parts) in FILES {
        put_there(&server);
        refused(&server, parts);
        caller.goes_on(&mut server);
    }
    nothing_was_lost(&server, caller);
}

#[test]
fn bad_builds() {
    let mut server = counter();
    let caller = Caller::of(&server, "call trouble add/1 1");
    for (words, parts) in BUILDS {
        server.install("trouble", &build(words));
        refused(&server, parts);
        caller.goes_on(&mut server);
    }
    nothing_was_lost(&server, caller);
    assert_eq!(server.stop().code, Some(0), "candidates that hang do not hold up the stop");
}

#[test]
fn bad_builds_of_a_service_without_state() {
    let settings = "[server]\nwatch = false\n[trouble]\nstart_timeout = 1";
    let mut server = TestServer::with(&["trouble/Trouble"]).settings(settings).start();
    let caller = Caller::of(&server, "call trouble echo/1 1");
    for (words, parts) in SWAPS {
        server.install("trouble", &build(words));
        refused(&server, parts);
        caller.goes_on(&mut server);
    }
    caller.end();
    assert_eq!(server.call("trouble", "build/1", "").unwrap(), "one");
}

#[test]
fn a_folder_that_others_can_write_to() {
    let server = counter();
    let open =
        |mode| std::fs::set_permissions(server.path("plugins"), PermissionsExt::from_mode(mode)).unwrap();
    open(0o757);
    refused(&server, &["its folder can be written by others", "chmod o-w"]);
    open(0o775);
    server.ask("reload trouble").unwrap();
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

#[test]
fn a_build_that_is_not_to_blame_is_shown_as_waiting() {
    let mut server = TestServer::with(&["trouble/Counter"]).settings("[trouble]\nfail = \"export\"").start();
    server.install("trouble", &build("name=two state=1"));
    let waits = |service: &Value| service["waiting_build"].is_string();
    let service = server.wait_service("trouble", "a build waits", waits);
    assert!(service["refused"].is_null(), "{service}");
    assert_eq!(server.call("trouble", "build/1", "").unwrap(), "one");
}

#[test]
fn a_library_that_cannot_be_opened_is_opened_once() {
    let server = TestServer::with(&["hello/Hello"]).settings("[server]\nwatch = false").start();
    let copies = |server: &TestServer| server.ask("status").unwrap()["generations"]["copies"].clone();
    server.install("trouble", &build("name=two state=1 fail=declare"));
    let first = server.ask("start trouble/Counter").unwrap_err();
    let loaded = copies(&server);
    let again = server.ask("start trouble/Counter").unwrap_err();
    assert!(again.text.contains(&first.text), "{again}");
    assert_eq!(copies(&server), loaded);
    server.install("trouble", &build("name=three state=1"));
    server.ask("start trouble/Counter").unwrap();
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
