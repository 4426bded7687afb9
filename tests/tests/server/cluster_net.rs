//! Three machines on one network, which falls apart and comes together again: namespaces of the net, which only
//! root can make.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zephserver_testkit::{TestServer, deadline};

/// A bridge and some machines at it.
struct Net {
    name: String,
    machines: Vec<String>,
}

fn run(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn ip(words: &[&str]) -> Result<(), String> {
    run(&[&["ip"], words].concat())
}

impl Net {
    /// Machines 10.77.0.1 and so on. An error: this machine lets nobody make them.
    fn new(count: usize) -> Result<Self, String> {
        let name = format!("zeph{}", std::process::id());
        let mut net = Self { name: name.clone(), machines: Vec::new() };
        ip(&["netns", "add", &name])?;
        ip(&["-n", &name, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &name, "link", "set", "bridge", "up"])?;
        for number in 1..=count {
            let machine = format!("{name}-{number}");
            let (end, address) = (format!("end{number}"), format!("10.77.0.{number}/24"));
            ip(&["netns", "add", &machine])?;
            net.machines.push(machine.clone());
            ip(&[
                "-n", &name, "link", "add", &end, "type", "veth", "peer", "name", "eth0", "netns", &machine,
            ])?;
            ip(&["-n", &name, "link", "set", &end, "master", "bridge", "up"])?;
            ip(&["-n", &machine, "address", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &machine, "link", "set", "eth0", "up"])?;
            ip(&["-n", &machine, "link", "set", "lo", "up"])?;
        }
        Ok(net)
    }

    /// Takes a machine's cable out, or puts it in again: nobody is told.
    fn cable(&self, machine: usize, way: &str) {
        ip(&["-n", &self.name, "link", "set", &format!("end{machine}"), way]).unwrap();
    }

    /// A node on a machine, with a relay that hears numbers.
    fn start(&self, number: usize) -> TestServer {
        let settings = format!(
            "[cluster]\nnode = \"n{number}\"\nlisten = \"10.77.0.{number}:22631\"\nseeds = [\"10.77.0.1:22631\", \
             \"10.77.0.2:22631\"]\nprofile = \"fast\"\nkey_file = \"cluster.key\"\n[relay]\nhears = [\"numbers\"]\n"
        );
        let machine = &self.machines[number - 1];
        let server = TestServer::with(&["relay/Relay"]).settings(&settings);
        let server = server.within(&["ip", "netns", "exec", machine]);
        let key = server.path("cluster.key");
        std::fs::write(&key, "5a".repeat(32)).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        server.start()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for machine in self.machines.iter().chain([&self.name]) {
            let _ = ip(&["netns", "delete", machine]);
        }
    }
}

fn say(server: &TestServer, number: u64) {
    let order = json!({"path": "", "method": "numbers", "payload": number});
    server.call("relay/Relay", "say/1", &order.to_string()).unwrap();
}

fn heard(server: &TestServer) -> Vec<Value> {
    server.call("relay/Relay", "events/1", "{}").unwrap().as_array().unwrap().clone()
}

fn numbers(server: &TestServer) -> Vec<u64> {
    let said = heard(server).into_iter().filter(|event| event["said"] == "numbers");
    said.filter_map(|event| event["payload"].as_str()?.parse().ok()).collect()
}

fn until_change(server: &mut TestServer, node: &str, change: &str) {
    let expected = json!({"node": node, "change": change});
    server.wait(&format!("{node} is {change}"), |server| heard(server).contains(&expected).then_some(()));
}

#[test]
fn a_network_that_falls_apart_and_comes_together_loses_nothing() {
    let net = match Net::new(3) {
        Ok(net) => net,
        Err(why) => {
            eprintln!("SKIPPED: no network of our own can be made here: {why}");
            return;
        }
    };
    let [mut a, mut b, mut c] = [1, 2, 3].map(|number| net.start(number));
    crate::nodes::wait_for_nodes(&mut a, 2);
    crate::nodes::wait_for_nodes(&mut b, 2);
    crate::nodes::wait_for_nodes(&mut c, 2);
    let mut next = 0;
    let mut talk = |count: u64| {
        for number in next..next + count {
            say(&a, number);
        }
        next += count;
    };
    talk(100);
    net.cable(3, "down");
    // Each side goes on, and what the other lacks is kept.
    talk(100);
    until_change(&mut b, "n3", "down");
    until_change(&mut c, "n1", "down");
    until_change(&mut c, "n2", "down");
    talk(100);
    say(&c, 1_000_000);
    b.wait("the whole side hears everything", |b| (numbers(b).len() == 300).then_some(()));
    assert!(numbers(&c).len() < 300);
    net.cable(3, "up");
    let healed = Instant::now();
    talk(100);
    c.wait("the other side has it all", |c| (numbers(c).len() == 400).then_some(()));
    assert!(healed.elapsed() < deadline(), "{:?}", healed.elapsed());
    assert_eq!(numbers(&c), (0..400).collect::<Vec<_>>(), "in order, and nothing twice");
    b.wait("what the other side said", |b| numbers(b).contains(&1_000_000).then_some(()));
    for server in [&a, &b, &c] {
        let gaps = heard(server).iter().filter(|event| event["change"] == "gap").count();
        assert_eq!(gaps, 0, "what was kept has no gap");
    }
    // A short cut that nobody has noticed yet.
    net.cable(3, "down");
    talk(50);
    std::thread::sleep(Duration::from_millis(300));
    net.cable(3, "up");
    c.wait("and that as well", |c| (numbers(c).len() == 450).then_some(()));
    assert_eq!(numbers(&c), (0..450).collect::<Vec<_>>());
}
