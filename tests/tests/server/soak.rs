//! Peers that talk all the time, while everything is reloaded in turn: a short form of `scripts/soak`.

use serde_json::Value;
use zephserver_testkit::Command;

#[test]
fn a_hundred_peers_notice_no_reload() {
    let soak =
        Command::new("zephserver-load").args(["soak", "--peers", "100", "--reloads", "15", "--json"]).run();
    assert_eq!(soak.code, Some(0), "{soak:?}");
    let told: Value = serde_json::from_str(&soak.stdout).unwrap();
    let figure = |name: &str| {
        let figure = told["figures"].as_array().unwrap().iter().find(|figure| figure["name"] == name);
        figure.unwrap_or_else(|| panic!("no {name}: {told}"))["value"].as_f64().unwrap()
    };
    for fault in ["dropped", "lost", "doubled", "reordered", "strange"] {
        assert_eq!(figure(fault), 0.0, "{fault}: {soak:?}");
    }
    assert_eq!(figure("reloads"), 15.0);
    // Each of them has asked and was answered after each reload.
    assert!(figure("messages") >= 15.0 * 100.0, "{told}");
}
