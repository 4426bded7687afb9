//! What operators ask of the ring: verbs that its plugins declare.

use serde_json::{Value, json};

use crate::client::{Client, EDGE, stage};

#[test]
fn rooms_are_listed_with_who_is_in_them() {
    let server = stage("");
    assert_eq!(server.ask("rooms").unwrap(), json!({"rooms": [], "total": 0}));
    let _ann = Client::join_as(&server, "lobby", "Ann");
    let _window = Client::join_as(&server, "lobby", "Ann");
    let mut guest = Client::join(&server, "lobby");
    let _bob = Client::join_as(&server, "a room", "Bob");
    let (other, lobby) =
        (json!({"room": "a room", "peers": 1, "users": 1}), json!({"room": "lobby", "peers": 3, "users": 1}));
    assert_eq!(server.ask("rooms").unwrap(), json!({"rooms": [other, lobby], "total": 2}));
    let shown = server.command(&["rooms"]);
    let table = "total: 2\npeers  room    users\n1      a room  1\n3      lobby   1\n";
    assert_eq!((shown.code, shown.stdout.as_str()), (Some(0), table), "{shown:?}");

    // A page says what it leaves out.
    let page = server.ask("rooms --limit 1").unwrap();
    assert_eq!(page, json!({"rooms": [other], "total": 2, "next_offset": 1}));
    assert_eq!(server.ask("rooms --offset 1").unwrap(), json!({"rooms": [lobby], "total": 2}));

    let cid = guest.request("Extra", Value::Null)["data"]["cid"].to_string();
    let list = server.ask("rooms lobby").unwrap();
    let members = list["members"].as_array().unwrap();
    assert_eq!((&list["room"], &list["total"], members.len()), (&json!("lobby"), &json!(3), 3));
    assert_eq!(members[2], json!({"cid": cid, "user": null, "username": null, "edge": EDGE}));
    let users: Vec<_> = members.iter().map(|member| (&member["user"], &member["username"])).collect();
    assert_eq!(users[..2], [(&json!("id-Ann"), &json!("Ann")); 2], "in the order they joined");
    let page = server.ask("rooms lobby --offset 1 --limit 1").unwrap();
    assert_eq!((&page["members"][0], &page["next_offset"]), (&members[1], &json!(2)));
    assert_eq!(server.ask("rooms a room").unwrap()["members"][0]["username"], "Bob", "a name with a blank");

    // What is shown as a cid can be used as one.
    let letter = json!({"task": "news", "data": 1, "cid": cid});
    assert_eq!(server.call("room", "send_to_cid/1", &letter.to_string()).unwrap(), 1);
    guest.until("the news", |frame| frame["task"] == "news");

    let nowhere = server.command(&["rooms", "nowhere"]);
    assert!(nowhere.code == Some(5) && nowhere.stderr.contains("`nowhere`"), "{nowhere:?}");
    let mistyped = server.command(&["rooms", "--limt", "5"]);
    assert!(mistyped.code == Some(2) && mistyped.stderr.contains("`--limit N`"), "{mistyped:?}");
}

#[test]
fn who_is_connected_is_shown_and_can_be_closed() {
    let mut server = stage("[server]\nwatch = false");
    assert_eq!(server.ask("peers").unwrap(), json!({"peers": [], "total": 0}));
    let mut ann = Client::join_as(&server, "lobby", "Ann");
    let mut window = Client::join_as(&server, "den", "Ann");
    let mut guest = Client::join(&server, "lobby");
    let mut bob = Client::join_as(&server, "lobby", "Bob");
    // The next generation knows all of it.
    server.wait("the edge is reloaded", |server| server.ask("reload websocket").ok());
    let list = server.ask("peers").unwrap();
    let rooms: Vec<_> = list["peers"].as_array().unwrap().iter().map(|peer| peer["room"].as_str()).collect();
    assert_eq!(
        (rooms.as_slice(), &list["total"]),
        (&[Some("lobby"), Some("den"), Some("lobby"), Some("lobby")][..], &json!(4))
    );
    assert!(list["peers"][0]["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{list}");
    let page = server.ask("peers id-Ann --limit 1").unwrap();
    assert_eq!((&page["total"], &page["next_offset"]), (&json!(2), &json!(1)));
    let users = server.ask("sessions").unwrap();
    assert_eq!((&users["anonymous"], &users["total"]), (&json!(1), &json!(2)));
    let rows: Vec<_> =
        users["sessions"].as_array().unwrap().iter().map(|row| (&row["user"], &row["peers"])).collect();
    assert_eq!(rows, [(&json!("id-Ann"), &json!(2)), (&json!("id-Bob"), &json!(1))]);
    let shown = server.command(&["peers", "id-Bob"]).stdout;
    assert!(shown.starts_with("total: 1\n") && shown.contains("Bob"), "{shown}");

    let cid = list["peers"][2]["cid"].as_str().unwrap().to_string();
    assert_eq!(server.ask(&format!("kick {cid}")).unwrap(), json!({"closed": 1, "told": 0}));
    assert_eq!(guest.closed_with(), (4403, "closed by the operator".into()));
    assert_eq!(server.ask("kick --user id-Ann").unwrap(), json!({"closed": 2, "told": 0}));
    assert_eq!((ann.closed_with().0, window.closed_with().0), (4403, 4403));
    bob.request("TaskEcho", Value::Null);
    let shown = server.command(&["kick", "--user", "id-Ann"]);
    assert!(shown.code == Some(5) && shown.stderr.contains("`peers` lists"), "{shown:?}");
    let shown = server.command(&["kick", "Bob"]);
    assert!(shown.code == Some(2) && shown.stderr.contains("`Bob` is no cid"), "{shown:?}");
    server.wait("they are gone", |server| (server.ask("peers").unwrap()["total"] == 1).then_some(()));
}
