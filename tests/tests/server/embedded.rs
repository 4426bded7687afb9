//! The server as a library.

use std::time::Duration;

use zephserver::{Phase, Settings, start_server};
use zephserver_testkit::TestServer;

#[test]
fn start_stop_and_start_again_in_one_process() {
    let folder = TestServer::with(&["hello/Hello", "trouble/Counter"]);
    let file = folder.write_settings();
    for _ in 0..3 {
        let server = start_server(Settings::read(&file).unwrap()).unwrap();
        assert_eq!(server.phase(), Phase::Ready);
        // Thread keys are counted in the server's own program only.
        let generations = server.control("status").unwrap()["generations"].clone();
        assert_eq!(generations["key_hook"], false);
        assert_eq!(generations["limit"], 900);
        assert!(generations["keys_in_use"].is_null());
        let hello = server.get_service("hello/Hello").unwrap();
        let limit = Duration::from_secs(5);
        assert_eq!(hello.call("greet/1", b"\"Ann\"", limit).unwrap(), b"\"Hello, Ann!\"");
        server.control("reload hello").unwrap();
        server.disable_service("hello/Hello").unwrap();
        assert!(hello.call("greet/1", b"\"Ann\"", limit).is_err());
        server.enable_service("hello/Hello").unwrap();
        assert_eq!(hello.call("greet/1", b"\"Bob\"", limit).unwrap(), b"\"Hello, Bob!\"");
        server.create_service("hello/Hello@two").unwrap();
        server.delete_service("hello/Hello@two").unwrap();
        let ended = server.command_stop();
        assert!(ended.error.is_none() && ended.left_behind.is_empty(), "{ended:?}");
        assert!(!folder.socket().exists() && !folder.path("server.lock").exists());
    }
}

#[test]
fn a_start_that_fails_answers_why() {
    let folder = TestServer::with(&["trouble/Trouble"]).settings("[trouble]\nfail = \"refuse\"");
    let error = start_server(Settings::read(&folder.write_settings()).unwrap()).err().unwrap();
    assert!(error.to_string().contains("does not want to"), "{error}");
    assert_eq!(error.exit_code(), 1);
}
