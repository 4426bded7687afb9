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
