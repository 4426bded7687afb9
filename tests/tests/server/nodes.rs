//! Servers that find one another.

use zephserver_testkit::TestServer;

/// Settings of a node that looks for others at these.
pub fn node(name: &str, seeds: &[&TestServer]) -> String {
    let seeds: Vec<String> = seeds.iter().map(|seed| address(seed)).collect();
    format!(
        "[cluster]\nengine = \"mesh\"\nnode = \"{name}\"\nlisten = \"127.0.0.1:0\"\nseeds = {seeds:?}\n\
         profile = \"fast\"\n"
    )
}

/// Where a node listens to others.
pub fn address(server: &TestServer) -> String {
    server.ask("cluster").unwrap()["address"].as_str().unwrap().to_string()
}

/// Waits until a node sees so many others.
pub fn wait_for_nodes(server: &mut TestServer, count: usize) {
    server.wait(&format!("{count} other nodes are up"), |server| {
        let cluster = server.ask("cluster").unwrap();
        let members = cluster["members"].as_array().unwrap();
        (members.iter().filter(|member| member["state"] == "up").count() == count).then_some(())
    });
}
