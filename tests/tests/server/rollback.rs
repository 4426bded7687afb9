//! Back to an older build: by command, over restarts, and by itself when a new build fails.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};
use zephserver_testkit::{Build, TestServer};

use crate::reload::build;

/// A counter of 5 in the build "one"; only commands load something.
fn counter(settings: &str) -> TestServer {
    let settings = format!("[server]\nwatch = false\n{settings}");
    let server = TestServer::with(&["trouble/Counter"]).settings(&settings).start();
    server.call("trouble", "add/1", "5").unwrap();
    server
}

fn reload(server: &TestServer, words: &str) {
    server.install("trouble", &build(words));
    server.ask("reload trouble").unwrap();
}

fn runs(server: &TestServer) -> Value {
    server.call("trouble/Counter", "build/1", "").unwrap()
}

fn count(server: &TestServer) -> Value {
    server.call("trouble/Counter", "get/1", "").unwrap()
}

fn wait_runs(server: &mut TestServer, name: &str) {
    server.wait(&format!("build {name} serves"), |server| {
        (server.call("trouble/Counter", "build/1", "").ok()? == name).then_some(())
    });
}

fn wait_unwatched(server: &mut TestServer) {
    server.wait("the watch is over", |server| {
        (server.ask("plugins").unwrap()[0]["watched"] == false).then_some(())
    });
}

/// The first letters of the hashes that are kept, the youngest first.
fn kept(server: &TestServer) -> Vec<String> {
    let list = server.ask("rollback trouble --list").unwrap();
    list.as_array().unwrap().iter().map(|build| build["hash"].as_str().unwrap().to_string()).collect()
}

fn copies(server: &TestServer) -> Vec<PathBuf> {
    let folder = server.path(".zephserver/copies/trouble");
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn start_again(server: &mut TestServer) {
    assert_eq!(server.stop().code, Some(0));
    assert_eq!(server.wait_ended(), Some(0));
    server.launch_again();
    server.wait_ready();
}

#[test]
fn to_the_build_before_and_to_one_by_its_hash() {
    let server = counter("");
    reload(&server, "name=two state=1");
    reload(&server, "name=three state=1");
    let before = kept(&server);
    let shown = server.command(&["rollback", "trouble"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("generation 4 (") && shown.stdout.contains("replaces 3 ("), "{shown:?}");
    assert!(shown.stdout.contains("rolled back to") && shown.stdout.contains("zephserver reload trouble"));
    assert_eq!((runs(&server), count(&server)), (json!("two"), json!(5)));
    let pinned = server.service("trouble")["pinned"].as_str().unwrap().to_string();
    assert!(pinned.starts_with(&format!("rolled back to {} since ", before[1])), "{pinned}");
    assert!(server.command(&["status"]).stdout.contains(&pinned));
    server.ask("rollback trouble/Counter").unwrap();
    assert_eq!(runs(&server), "one", "once more: further back, and not to its file");
    server.ask(&format!("rollback trouble {}", &before[0][..6])).unwrap();
    assert_eq!((runs(&server), count(&server)), (json!("three"), json!(5)));
    assert!(server.service("trouble")["pinned"].is_null(), "it runs with its file again");
    assert_eq!(server.service("trouble")["failures"], 0);
}

#[test]
fn a_hash_that_is_not_kept_is_not_found() {
    let server = counter("");
    let error = server.ask("rollback trouble").unwrap_err();
    assert_eq!(error.code.name(), "not_found", "{error}");
    reload(&server, "name=two state=1");
    let hashes = kept(&server);
    let error = server.ask("rollback trouble 0123456789abcdef0").unwrap_err();
    assert_eq!(error.code.name(), "not_found");
    assert!(hashes.iter().all(|hash| error.text.contains(hash)), "{error}");
    let error = server.ask(&format!("rollback trouble {}", hashes[0])).unwrap_err();
    assert!(error.text.contains("runs already"), "{error}");
    assert_eq!(server.ask("rollback").unwrap_err().code.name(), "invalid");
    assert_eq!(server.ask("rollback nope").unwrap_err().code.name(), "not_found");
    let shown = server.command(&["rollback", "trouble", "--list"]);
    assert!(shown.stdout.contains("HASH") && shown.stdout.contains("runs"), "{shown:?}");
    assert_eq!(runs(&server), "two");
}

#[test]
fn a_build_that_cannot_import_the_state_is_refused() {
    let server = counter("");
    reload(&server, "name=two state=2 imports=1");
    server.call("trouble", "add/1", "1").unwrap();
    let error = server.ask("rollback trouble").unwrap_err();
    assert_eq!(error.code.name(), "incompatible");
    assert!(error.text.contains("cannot import version 2") && error.text.contains("serves on"), "{error}");
    assert_eq!((runs(&server), count(&server)), (json!("two"), json!(6)));
    let service = server.service("trouble");
    assert!(service["pinned"].is_null() && service["refused"].is_null(), "{service}");
    assert_eq!((kept(&server).len(), copies(&server).len()), (2, 2));
}

#[test]
fn it_holds_over_a_restart_until_somebody_reloads() {
    let mut server = counter("");
    reload(&server, "name=two state=1");
    server.ask("rollback trouble").unwrap();
    start_again(&mut server);
    assert_eq!(runs(&server), "one");
    assert!(server.service("trouble")["pinned"].is_string());
    assert!(server.log().contains("is loaded, to which it was rolled back"), "{}", server.log());
    let mode = server.path(".zephserver/pins.json").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.ask("reload trouble").unwrap();
    assert_eq!(runs(&server), "two");
    assert!(server.service("trouble")["pinned"].is_null());
    start_again(&mut server);
    assert_eq!(runs(&server), "two");
    assert!(!server.path(".zephserver/pins.json").exists());
}

#[test]
fn a_changed_file_ends_it_at_the_next_start() {
    let mut server = counter("");
    reload(&server, "name=two state=1");
    server.ask("rollback trouble").unwrap();
    server.install("trouble", &build("name=three state=1"));
    start_again(&mut server);
    assert_eq!(runs(&server), "three");
    assert!(server.service("trouble")["pinned"].is_null());
    // The generations of two servers are not mixed up.
    server.ask("rollback trouble").unwrap();
    assert_eq!(runs(&server), "one", "what ran last before");
}

#[test]
fn the_watcher_leaves_the_file_alone_until_it_changes() {
    let mut server = TestServer::with(&["trouble/Counter", "hello/Hello"]).start();
    let wait_hello = |server: &mut TestServer, generation: u64, build: Build| {
        server.install("hello", &build);
        server.wait_service("hello", "is replaced", |service| service["generation"] == generation);
    };
    reload(&server, "name=two state=1");
    server.ask("rollback trouble").unwrap();
    build("name=two state=1").put(&server.library("trouble"));
    // When the second of these is done, the first look at the other file was long ago.
    let other = Build::of("hello").replaced("the word before the name", "THE WORD before the name");
    wait_hello(&mut server, 2, other);
    wait_hello(&mut server, 3, Build::of("hello"));
    assert_eq!(runs(&server), "one");
    build("name=three state=1").put(&server.library("trouble"));
    wait_runs(&mut server, "three");
    let service = server.wait_service("trouble", "is not pinned", |service| service["pinned"].is_null());
    assert_eq!(service["generation"], 4);
}

#[test]
fn three_contents_are_kept_and_one_file_of_each() {
    let server = counter("");
    for name in ["two", "three", "four", "five"] {
        reload(&server, &format!("name={name} state=1"));
    }
    server.ask("reload trouble").unwrap();
    let good: BTreeSet<String> = kept(&server).into_iter().collect();
    assert_eq!((good.len(), copies(&server).len()), (3, 3));
    for step in ["declare", "create", "import", "init"] {
        server.install("trouble", &build(&format!("name=six state=1 fail={step}")));
        server.ask("reload trouble").unwrap_err();
    }
    assert_eq!(kept(&server).into_iter().collect::<BTreeSet<_>>(), good, "bad builds push out nothing");
    assert_eq!(copies(&server).len(), 3);
    server.ask("rollback trouble").unwrap();
    assert_eq!(runs(&server), "four");
}

#[test]
fn a_kept_copy_that_was_changed_is_refused() {
    let server = counter("");
    let old = kept(&server).remove(0);
    reload(&server, "name=two state=1");
    let copy = copies(&server).into_iter().find(|path| path.to_string_lossy().contains(&old)).unwrap();
    std::fs::remove_file(&copy).unwrap();
    build("name=evil state=1").put(&copy);
    let error = server.ask("rollback trouble").unwrap_err();
    assert!(error.text.contains("its content is not what its name says"), "{error}");
    assert_eq!((runs(&server), count(&server)), (json!("two"), json!(5)));
}

#[test]
fn pins_that_cannot_be_read_are_set_aside() {
    let server = TestServer::with(&["trouble/Counter"]);
    std::fs::create_dir(server.path(".zephserver")).unwrap();
    std::fs::write(server.path(".zephserver/pins.json"), "{").unwrap();
    let server = server.start();
    assert_eq!(runs(&server), "one");
    assert!(server.path(".zephserver/pins.json.bad").exists());
    assert!(server.log().contains("rollbacks are forgotten"), "{}", server.log());
}

#[test]
fn a_crash_soon_after_a_reload_goes_back_to_the_state_of_the_swap() {
    let mut server = counter("");
    reload(&server, "name=two state=1");
    server.call("trouble", "add/1", "1").unwrap();
    assert_eq!(server.call("trouble", "panic/1", "").unwrap_err().code.name(), "panicked");
    wait_runs(&mut server, "one");
    assert_eq!(count(&server), 5);
    let service = server.service("trouble");
    assert_eq!(service["generation"], 1);
    let refused = service["refused"].as_str().unwrap();
    assert!(refused.starts_with("rolled back: it crashed within 10 s: call panic/1"), "{refused}");
    assert!(refused.contains("told to panic in a call"), "{refused}");
    let entries = server.ask("history trouble").unwrap();
    let back = entries.as_array().unwrap().iter().filter(|entry| entry["what"] == "rolled_back");
    let names: Vec<_> = back.map(|entry| (entry["name"].as_str().unwrap(), &entry["generation"])).collect();
    assert_eq!(names, [("trouble", &json!(1)), ("trouble/Counter", &json!(1))], "{entries}");
    server.wait_log("begins with its state of the reload: what changed in it during the");
    // The build before may crash as usual.
    server.call("trouble", "panic/1", "").unwrap_err();
    wait_runs(&mut server, "one");
    server.wait_service("trouble", "is pinned", |service| service["pinned"].is_string());
    start_again(&mut server);
    assert_eq!(runs(&server), "one", "a restart does not bring back what crashed");
    server.ask("reload trouble").unwrap();
    assert_eq!(runs(&server), "two", "asked for, it is tried again");
    assert_eq!(server.service("trouble")["generation"], 2);
}

#[test]
fn settings_of_meanwhile_stay() {
    let mut server = counter("[trouble]\nfail = \"before\"");
    reload(&server, "name=two state=1");
    server.edit_settings(|text| text.replace("\"before\"", "\"meanwhile\""));
    server.ask("apply").unwrap();
    assert_eq!(server.call("trouble", "setting/1", "").unwrap(), "meanwhile");
    server.call("trouble", "panic/1", "").unwrap_err();
    wait_runs(&mut server, "one");
    assert_eq!(server.call("trouble", "setting/1", "").unwrap(), "meanwhile");
    assert_eq!(count(&server), 5);
}

#[test]
fn a_younger_checkpoint_counts_and_descriptors_do_not_come_back() {
    let mut server = counter("");
    reload(&server, "name=two state=1");
    server.call("trouble", "add/1", "1").unwrap();
    server.call("trouble", "checkpoint/1", "").unwrap();
    server.call("trouble", "add/1", "1").unwrap();
    server.call("trouble", "panic/1", "").unwrap_err();
    wait_runs(&mut server, "one");
    assert_eq!(count(&server), 6);
    server.call("trouble", "write/1", "\"a\"").unwrap();
    reload(&server, "name=three state=1");
    assert_eq!(count(&server), 6);
    server.call("trouble", "panic/1", "").unwrap_err();
    wait_runs(&mut server, "one");
    assert_eq!(count(&server), 0);
    server.wait_log("begins without state");
}

#[test]
fn what_did_not_fail_goes_back_with_all_that_it_has() {
    let mut server =
        TestServer::with(&["trouble/Trouble", "trouble/Counter"]).settings("[server]\nwatch = false").start();
    server.call("trouble/Counter", "write/1", "\"a\"").unwrap();
    reload(&server, "name=two state=1 fail=main-later");
    server.call("trouble/Counter", "add/1", "6").unwrap();
    server.call("trouble/Trouble", "fall/1", "").unwrap();
    wait_runs(&mut server, "one");
    assert_eq!(count(&server), 6, "also what came after the reload");
    assert_eq!(server.call("trouble/Counter", "read/1", "").unwrap(), "a", "it is the same pipe");
    assert_eq!(server.service("trouble/Counter")["failures"], 0);
    let service =
        server.wait_service("trouble/Trouble", "serves again", |service| service["state"] == "enabled");
    assert_eq!((&service["generation"], &service["failures"]), (&json!(1), &json!(1)));
    let refused = service["refused"].as_str().unwrap();
    assert!(refused.contains("told to panic in main, later"), "{refused}");
    server.wait_service("trouble/Trouble", "is pinned", |service| service["pinned"].is_string());
}

#[test]
fn a_service_that_cannot_go_back_stays_and_is_named() {
    let mut server =
        TestServer::with(&["trouble/Trouble", "trouble/Counter"]).settings("[server]\nwatch = false").start();
    reload(&server, "name=two state=2 imports=1");
    server.call("trouble/Counter", "add/1", "6").unwrap();
    server.call("trouble/Trouble", "panic/1", "").unwrap_err();
    server.wait_log("what did not fail stays with generation 2");
    assert_eq!((runs(&server), count(&server)), (json!("two"), json!(6)));
    server.wait_service("trouble/Trouble", "is back", |service| {
        service["generation"] == 1 && service["state"] == "enabled"
    });
    // The next build takes over from both.
    reload(&server, "name=three state=2 imports=1");
    assert_eq!((runs(&server), count(&server)), (json!("three"), json!(6)));
    for name in ["trouble/Trouble", "trouble/Counter"] {
        assert_eq!(server.service(name)["generation"], 3, "{name}");
    }
}

#[test]
fn a_crash_later_or_of_the_same_content_is_mended_as_usual() {
    let mut server = counter("watch_after_reload = 0.05");
    reload(&server, "name=two state=1");
    wait_unwatched(&mut server);
    server.call("trouble", "panic/1", "").unwrap_err();
    wait_runs(&mut server, "two");
    assert!(server.service("trouble")["refused"].is_null());

    let mut server = counter("watch_after_reload = 0");
    reload(&server, "name=two state=1");
    server.call("trouble", "panic/1", "").unwrap_err();
    wait_runs(&mut server, "two");

    let mut server = counter("");
    server.ask("reload trouble").unwrap();
    server.call("trouble", "panic/1", "").unwrap_err();
    let service = server.wait_service("trouble", "serves again", |service| {
        service["restarts"] == 1 && service["state"] == "enabled"
    });
    assert_eq!(service["generation"], 2);
    // Nor after a rollback: an operator wanted that.
    reload(&server, "name=two state=1");
    server.ask("rollback trouble").unwrap();
    server.call("trouble", "panic/1", "").unwrap_err();
    wait_runs(&mut server, "one");
    assert_eq!(server.service("trouble")["generation"], 4);
}
