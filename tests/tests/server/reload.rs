//! New builds take over: by command and by file, with and without state.

use serde_json::{Value, json};
use zephserver_testkit::{Build, TestServer};

use crate::caller::Caller;

const MARK: &str = "zephserver fixture build: ";

/// The fixture as another build: `name=two fail=init`.
pub fn build(words: &str) -> Build {
    Build::of("trouble").patched(MARK, words)
}

fn generation(server: &TestServer, name: &str) -> u64 {
    server.service(name)["generation"].as_u64().unwrap()
}

#[test]
fn an_unchanged_file_makes_a_new_generation_when_asked() {
    let server = TestServer::with(&["trouble/Trouble", "trouble/Counter"]).start();
    let addresses = |server: &TestServer| server.ask("plugins").unwrap()[0]["code_address"].clone();
    let before = addresses(&server);
    let shown = server.command(&["reload", "trouble"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("generation 2 (") && shown.stdout.contains("replaces 1 ("), "{shown:?}");
    let answer = server.ask("reload trouble/Counter").unwrap();
    assert_eq!((&answer["from"]["generation"], &answer["to"]["generation"]), (&json!(2), &json!(3)));
    assert_eq!(answer["from"]["hash"], answer["to"]["hash"]);
    assert_eq!(generation(&server, "trouble/Trouble"), 3);
    assert_ne!(addresses(&server), before, "other code answers");
    assert_eq!(server.ask("reload nope").unwrap_err().code.name(), "not_found");
}

#[test]
fn a_changed_file_is_loaded_by_itself() {
    let mut server = TestServer::with(&["trouble/Trouble"]).start();
    let file = server.library("trouble");
    let wait = |server: &mut TestServer, name: &str| {
        server.wait(&format!("build {name} serves"), |server| {
            (server.call("trouble", "build/1", "").unwrap() == name).then_some(())
        });
    };
    build("name=two state=1").put(&file);
    wait(&mut server, "two");
    // `cp` over the live file, while it is called.
    build("name=three state=1").copy_over(&file);
    wait(&mut server, "three");
    // The same bytes once more change nothing.
    let before = generation(&server, "trouble");
    build("name=three state=1").put(&file);
    build("name=four state=1").put(&file);
    wait(&mut server, "four");
    assert_eq!(generation(&server, "trouble"), before + 1);
}

#[test]
fn state_is_handed_over_and_no_call_is_lost() {
    let mut server = TestServer::with(&["trouble/Counter"]).start();
    let callers = Caller::crew(&server, "call trouble add/1 1", 4);
    for round in 0..10 {
        build(&format!("name=build-{round} state=1")).put(&server.library("trouble"));
        server.ask("reload trouble").unwrap();
        callers.iter().for_each(|caller| caller.goes_on(&mut server));
    }
    let added: u64 = callers.into_iter().map(Caller::end).sum();
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), added);
    assert_eq!(server.call("trouble", "build/1", "").unwrap(), "build-9");
    assert_eq!(server.service("trouble")["failures"], 0);
}

#[test]
fn descriptors_pass_with_the_state_and_stay_where_that_fails() {
    let mut server = TestServer::with(&["trouble/Counter"]).settings("[server]\nwatch = false").start();
    let open = |server: &TestServer| std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    server.call("trouble", "write/1", "\"a\"").unwrap();
    server.ask("reload trouble").unwrap();
    server.call("trouble", "write/1", "\"b\"").unwrap();
    assert_eq!(server.call("trouble", "read/1", "").unwrap(), "ab", "it is the same pipe");
    for step in ["import", "init"] {
        server.install("trouble", &build(&format!("name=two state=1 fail={step}")));
        server.ask("reload trouble").unwrap_err();
        server.call("trouble", "write/1", "\"c\"").unwrap();
        assert_eq!(server.call("trouble", "read/1", "").unwrap(), "c", "the old one has it still");
    }
    server.install("trouble", &build("name=three state=1"));
    let before = server.wait("old ones are gone", |server| {
        let status = server.ask("status").unwrap();
        status["generations"]["draining"].as_array().unwrap().is_empty().then(|| open(server))
    });
    for _ in 0..5 {
        server.ask("reload trouble").unwrap();
    }
    // Each generation closes its own in its end.
    server.wait("no descriptor is left over", |server| (open(server) <= before).then_some(()));
    server.call("trouble", "write/1", "\"d\"").unwrap();
    assert_eq!(server.call("trouble", "read/1", "").unwrap(), "d");
}

#[test]
fn millions_of_direct_calls_pass_through_reloads() {
    let server = TestServer::with(&["trouble/Counter", "relay/Relay"])
        .settings("[server]\nwatch = false\ncall_timeout = 120")
        .start();
    let order = json!({"path": "trouble/Counter", "method": "add/1", "payload": 1, "count": 700_000});
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let (socket, line) = (server.socket(), format!("call relay time/1 {order}"));
            std::thread::spawn(move || zephserver::client::ask(&socket, &line).unwrap())
        })
        .collect();
    let mut reloads = 0;
    while !callers.iter().all(|caller| caller.is_finished()) && reloads < 200 {
        server.ask("reload trouble").unwrap();
        reloads += 1;
    }
    for caller in callers {
        let answer = caller.join().unwrap();
        assert!(answer.is_number(), "{answer}");
    }
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), 2_100_000);
    assert!(reloads >= 1);
}

#[test]
fn a_chain_that_comes_back_passes_the_shut_gate() {
    let mut server =
        TestServer::with(&["trouble/Counter", "relay/Relay"]).settings("[server]\ngate_timeout = 5").start();
    // Inside the counter for some milliseconds, then back into it from the relay.
    let callers = Caller::crew(&server, "call trouble round/1 5", 3);
    for _ in 0..10 {
        server.ask("reload trouble").unwrap();
    }
    let rounds: u64 = callers.into_iter().map(Caller::end).sum();
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), rounds);
    server.wait("all old generations are gone", |server| {
        server.ask("status").unwrap()["generations"]["draining"].as_array().unwrap().is_empty().then_some(())
    });
}

#[test]
fn old_calls_end_in_the_old_build() {
    let mut server = TestServer::with(&["trouble/Trouble"]).start();
    let socket = server.socket();
    let later = std::thread::spawn(move || {
        zephserver::client::ask(&socket, "call trouble later/1 {\"ms\":600}").unwrap()
    });
    server.wait("the call is pending", |server| {
        (server.ask("status").unwrap()["calls"]["pending"] == 1).then_some(())
    });
    server.install("trouble", &build("name=two state=1"));
    server.ask("reload trouble").unwrap();
    assert_eq!(server.call("trouble", "build/1", "").unwrap(), "two");
    assert_eq!(later.join().unwrap(), "one", "the job was finished where it began");
}

#[test]
fn a_call_that_stays_inside_defers_the_reload_and_is_named() {
    let mut server = TestServer::with(&["trouble/Counter"]).start();
    let socket = server.socket();
    let sleeper =
        std::thread::spawn(move || zephserver::client::ask(&socket, "call trouble sleep/1 1500").unwrap());
    server.wait("the call is inside", |server| {
        (server.ask("status").unwrap()["pool"]["threads"] == 1).then_some(())
    });
    let error = server.ask("reload trouble").unwrap_err();
    assert!(error.text.contains("sleep/1 (1)"), "{error}");
    assert_eq!(server.call("trouble", "add/1", "1").unwrap(), 1, "the gate is open again");
    sleeper.join().unwrap();
    assert!(server.service("trouble")["refused"].is_null(), "the file is not to blame");
    server.ask("reload trouble").unwrap();
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), 1);
}

#[test]
fn state_of_an_older_version_is_imported_where_the_build_can() {
    let server = TestServer::with(&["trouble/Counter"]).start();
    server.call("trouble", "add/1", "5").unwrap();
    server.install("trouble", &build("name=two state=2 imports=1"));
    server.ask("reload trouble").unwrap();
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), 5);
    server.install("trouble", &build("name=three state=4 imports=3"));
    let error = server.ask("reload trouble").unwrap_err();
    assert!(error.text.contains("cannot import version 2"), "{error}");
    assert_eq!(server.call("trouble", "build/1", "").unwrap(), "two");
    assert_eq!(server.call("trouble", "add/1", "1").unwrap(), 6);
}

#[test]
fn generations_are_counted_and_go_when_they_are_idle() {
    let mut server = TestServer::with(&["trouble/Trouble", "trouble/Counter"]).start();
    for _ in 0..5 {
        server.ask("reload trouble").unwrap();
    }
    let status: Value = server.wait("old ones are gone", |server| {
        let status = server.ask("status").unwrap();
        status["generations"]["draining"].as_array().unwrap().is_empty().then_some(status)
    });
    assert_eq!((&status["generations"]["loaded"], &status["generations"]["copies"]), (&json!(6), &json!(6)));
    let copies = std::fs::read_dir(server.path(".zephserver/copies/trouble")).unwrap().count();
    assert_eq!(copies, 1, "of one content");
}

#[test]
fn reloads_at_once_come_one_after_the_other_and_the_last_file_wins() {
    let mut server = TestServer::with(&["trouble/Counter", "trouble/Trouble"]).start();
    server.call("trouble/Counter", "add/1", "5").unwrap();
    build("name=two state=1").put(&server.library("trouble"));
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let socket = server.socket();
            std::thread::spawn(move || zephserver::client::ask(&socket, "reload trouble").unwrap())
        })
        .collect();
    // And a file that changes meanwhile.
    build("name=three state=1").put(&server.library("trouble"));
    let mut generations: Vec<u64> = asked
        .into_iter()
        .map(|asked| asked.join().unwrap()["to"]["generation"].as_u64().expect("each is answered"))
        .collect();
    generations.sort_unstable();
    assert_eq!(generations, (2..10).collect::<Vec<_>>(), "none is left out, none is done twice");
    server.wait("the last file serves", |server| {
        (server.call("trouble/Counter", "build/1", "").ok()? == "three").then_some(())
    });
    assert_eq!(server.call("trouble/Counter", "get/1", "").unwrap(), 5);
    assert_eq!(server.service("trouble/Counter")["failures"], 0);
}
