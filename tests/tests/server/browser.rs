//! The browser's side, in a real browser: the chat page, its library, and a client like that of 2015.

use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::json;
use zephserver_testkit::{Build, TestServer};

use crate::chromium::{Chromium, Window};

const RING: [&str; 5] =
    ["session/Session", "room/Room", "tasks/Tasks", "router/Router", "websocket/WebSocket"];
const TASKS: &str = "[TASKS_PATH]\nTaskEcho = \"tasks/TaskEcho\"\n\"chat.say\" = \"tasks/ChatSay\"";

fn ring(port: u16) -> TestServer {
    TestServer::with(&RING).settings(&format!("PORT_ZEPH = {port}\n{TASKS}")).start()
}

/// Opens the page, and waits until its hello is done: later messages wait for that.
fn join<'a>(browser: &'a Chromium, server: &TestServer, room: &str) -> Window<'a> {
    let port = server.port("websocket/WebSocket");
    let window = browser.open(&format!("http://127.0.0.1:{port}/#{room}"));
    window.wait("document.querySelector('#state').dataset.state === 'open'");
    assert_eq!(window.evaluate("client.request('TaskEcho', 'joined')"), "joined");
    window
}

fn wait_line(windows: &[&Window<'_>], line: &str) {
    let lines = "[...document.querySelectorAll('#messages p')].map(line => line.textContent)";
    for window in windows {
        window.wait(&format!("{lines}.includes({})", json!(line)));
    }
}

/// Keeps a picture, if somebody wants to see it: ZEPHSERVER_SCREENSHOTS names a folder.
fn picture(window: &Window<'_>, name: &str) {
    if let Some(folder) = std::env::var_os("ZEPHSERVER_SCREENSHOTS").map(PathBuf::from) {
        std::fs::create_dir_all(&folder).unwrap();
        window.screenshot(&folder.join(name).with_extension("png"));
    }
}

#[test]
fn two_windows_chat_in_one_room() {
    let server = ring(0);
    let browser = Chromium::start();
    let ann = join(&browser, &server, "lobby");
    let bob = join(&browser, &server, "lobby");
    let other = join(&browser, &server, "elsewhere");
    ann.type_line("#text", "Is anybody here?");
    wait_line(&[&ann, &bob], "Is anybody here?");
    bob.type_line("#text", "Bob is. <b>Hello!</b>");
    wait_line(&[&ann, &bob], "Bob is. <b>Hello!</b>");
    assert_eq!(ann.evaluate("document.querySelectorAll('#messages b').length"), 0, "words are no markup");
    // An answer comes after everything that was said before.
    other.evaluate("client.request('TaskEcho')");
    assert_eq!(other.evaluate("document.querySelectorAll('#messages .line').length"), 0);
    picture(&ann, "chat");

    other.type_line("#room", "lobby");
    other.wait("location.hash === '#lobby' && client.room === 'lobby'");
    other.type_line("#text", "I came over.");
    wait_line(&[&ann, &bob, &other], "I came over.");
    assert_eq!(other.evaluate("document.querySelectorAll('#messages .line').length"), 1);
    let rooms = "[...document.querySelectorAll('#rooms a')].map(room => room.textContent)";
    assert_eq!(other.evaluate(rooms), json!(["elsewhere", "lobby"]));
    assert_eq!(ann.evaluate("document.querySelectorAll('[data-person]').length"), 0, "all are anonymous");
}

#[test]
fn the_page_watches_a_reload_and_stays_connected() {
    let server = ring(0);
    let browser = Chromium::start();
    let window = join(&browser, &server, "lobby");
    let shows = |generation: &str| {
        let row = "document.querySelector('#services [data-service=\"tasks/Tasks\"]')";
        window.wait(&format!(
            "{row}?.dataset.generation === '{generation}' && {row}.dataset.state === 'enabled'"
        ));
    };
    shows("1");
    assert_eq!(window.evaluate("document.querySelectorAll('#services [data-service]').length"), RING.len());
    window.evaluate(
        "window.first = client.webSocket; window.states = []; client.onstate(s => states.push(s)); 0",
    );
    server.ask("reload tasks").unwrap();
    shows("2");
    assert_eq!(
        window.evaluate("document.querySelector('#services .changed').dataset.service"),
        "tasks/Tasks"
    );
    picture(&window, "reload");
    // Another build of the same library: its answers have another key.
    server.install("tasks", &Build::of("tasks").replaced("from", "born"));
    shows("3");
    let said = window.evaluate(
        "new Promise(heard => {
            client.subscribe('chat.say', frame => heard(frame));
            client.send('chat.say', { text: 'b' });
        })",
    );
    assert_eq!(said, json!({"task": "chat.say", "data": {"born": null, "text": "b"}}));
    wait_line(&[&window], "b");
    assert_eq!(window.evaluate("first === client.webSocket && client.state"), "open");
    assert_eq!(window.evaluate("states"), json!([]));
}

#[test]
fn subscriptions_and_requests() {
    let server = ring(0);
    let browser = Chromium::start();
    let window = join(&browser, &server, "lobby");
    let seen = window.evaluate(
        "(async () => {
            const mine = new Zephclient(undefined, undefined, 'mine');
            const heard = [], errors = [], notices = [];
            const [one, two] = [frame => heard.push(['one', frame]), frame => heard.push(['two', frame])];
            mine.onerror(error => errors.push([error.code, error.task]));
            mine.onnotice(notice => notices.push(notice));
            mine.subscribe('TaskEcho', () => { throw new Error('of a listener'); });
            mine.subscribe('TaskEcho', one);
            mine.subscribe('TaskEcho', two);
            // Sent before it is connected.
            mine.send('TaskEcho', { a: 1 });
            const answer = await mine.request('TaskEcho', [1, 2]);
            mine.unsubscribe('TaskEcho', one);
            mine.send('TaskEcho', 2);
            mine.send('nope');
            const error = await mine.request('nope').catch(error => error);
            await mine.request('TaskEcho');
            const lost = new Zephclient(undefined, `ws://${location.host}/nowhere`, 'mine');
            const late = await lost.request('TaskEcho', 0, { timeout: 10 }).catch(error => error);
            [mine, lost].forEach(client => client.close());
            const closed = await mine.request('TaskEcho').catch(error => error);
            const isError = error instanceof Error && error instanceof Zephclient.ZephError;
            const codes = [error, late, closed].map(error => error.code);
            return { heard, errors, notices, answer, isError, codes, task: error.task, state: mine.state };
        })()",
    );
    let frame = json!({"task": "TaskEcho", "data": {"a": 1}});
    let second = json!(["two", {"task": "TaskEcho", "data": 2}]);
    assert_eq!(seen["heard"], json!([["one", frame], ["two", frame], second]), "{seen}");
    assert_eq!(seen["errors"], json!([["not_found", "nope"]]), "the other one went to its promise");
    assert_eq!(seen["notices"], json!([{"data": [], "msgtype": "user_list"}]));
    assert_eq!(seen["answer"], json!([1, 2]));
    assert_eq!(seen["codes"], json!(["not_found", "timeout", "unavailable"]));
    assert_eq!(
        (&seen["isError"], &seen["task"], &seen["state"]),
        (&json!(true), &json!("nope"), &json!("closed"))
    );
}

#[test]
fn a_client_comes_back_after_the_edge_does() {
    // The same port after the restart: a free one, taken by nobody since.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = ring(port);
    let browser = Chromium::start();
    let ann = join(&browser, &server, "lobby");
    let bob = join(&browser, &server, "lobby");
    for window in [&ann, &bob] {
        window.evaluate(
            "window.first = client.webSocket; window.states = []; client.onstate(s => states.push(s)); 0",
        );
    }
    server.ask("restart websocket").unwrap();
    for window in [&ann, &bob] {
        window.wait("states.at(-1) === 'open' && client.webSocket !== first");
        assert_eq!(window.evaluate("states[0]"), "waiting");
        wait_line(&[window], "Connected again. What was said meanwhile is not shown.");
        // Only who said hello again is answered.
        assert_eq!(window.evaluate("client.request('TaskEcho', 1)"), 1);
    }
    ann.type_line("#text", "Still here?");
    wait_line(&[&ann, &bob], "Still here?");
    ann.evaluate("client.close()");
    ann.wait("document.querySelector('#state').dataset.state === 'closed'");
    picture(&ann, "closed");
}

/// A client as pages had it in 2015, written anew from what it sent and what it took.
const OF_2015: &str = r"
    function Client2015(session, url, room, messageCallback) {
        var self = this;
        this.session = session;
        this.room = room || window.location.href;
        this.subscribers = {};
        this.webSocket = new WebSocket(url || 'ws://' + window.location.host + '/ws');
        this.webSocket.onopen = function () {
            self.webSocket.send(JSON.stringify({ session_id: self.session, room: self.room }));
            setInterval(function () { self.send('TaskPing', {}); }, 45000);
        };
        this.webSocket.onmessage = messageCallback || function (event) {
            var message = JSON.parse(event.data);
            var callbacks = self.subscribers[message.task];
            for (var i = 0; callbacks && i < callbacks.length; i++) callbacks[i](message);
        };
    }
    Client2015.prototype.send = function (task, data) {
        var self = this;
        if (this.webSocket.readyState !== 1) return setTimeout(function () { self.send(task, data); }, 10);
        this.webSocket.send(JSON.stringify({
            task: task, data: data, room: this.room, session_id: this.session, date: new Date().getTime()
        }));
    };
    Client2015.prototype.subscribe = function (task, callback) {
        (this.subscribers[task] = this.subscribers[task] || []).push(callback);
    };
";

#[test]
fn a_client_of_2015_works_unchanged() {
    let server = ring(0);
    let browser = Chromium::start();
    let ann = join(&browser, &server, "old");
    let bob = join(&browser, &server, "old");
    for window in [&ann, &bob] {
        window.evaluate(&format!("{OF_2015} window.Client2015 = Client2015; window.heard = []; 0"));
    }
    ann.evaluate(
        "window.old = new Client2015(undefined, undefined, 'old');
        ['TaskEcho', 'chat.say'].forEach(task => old.subscribe(task, message => heard.push(message)));
        // Before it is open; and errors are nothing that it takes.
        old.send('TaskEcho', { a: [1, null, 'ü'] });
        old.send('nope', 1);
        old.send('TaskPing', {});
        old.send('chat.say', { text: 'from 2015' });
        0",
    );
    ann.wait("heard.length === 2");
    let expected = json!([
        {"task": "TaskEcho", "data": {"a": [1, null, "ü"]}},
        {"task": "chat.say", "data": {"from": null, "text": "from 2015"}},
    ]);
    assert_eq!(ann.evaluate("heard"), expected);
    wait_line(&[&bob], "from 2015");
    bob.type_line("#text", "welcome back");
    ann.wait("heard.length === 3 && heard[2].data.text === 'welcome back'");

    // A raw callback, and the page's address as the room: notices come, and answers have two keys.
    bob.evaluate(
        "window.raw = new Client2015(undefined, null, null, event => heard.push(JSON.parse(event.data)));
        raw.send('TaskEcho', 1);
        0",
    );
    bob.wait("heard.length === 2");
    let expected = json!([{"data": [], "msgtype": "user_list"}, {"task": "TaskEcho", "data": 1}]);
    assert_eq!(bob.evaluate("heard"), expected);
}
