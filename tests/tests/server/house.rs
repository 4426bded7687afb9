//! The plan of the house, held against the code.

use std::collections::BTreeSet;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

fn metadata() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap()
}

/// What each crate of ours may import of ours; plugins and fixtures have no line of their own.
fn allowed(name: &str) -> &'static [&'static str] {
    match name {
        "zeph-abi" | "zeph-contract" | "zeph-cluster" | "zeph-edge" => &[],
        "zephserver-plugin" => &["zeph-abi", "zeph-contract"],
        "zephserver" => &["zeph-abi", "zeph-cluster", "zeph-contract"],
        "zephserver-testkit" => &["zephserver", "zephserver-plugin", "zeph-contract"],
        "zephserver-load" => &["zephserver-testkit", "zeph-cluster"],
        "zephserver-tests" => &["zephserver", "zephserver-testkit", "zeph-contract"],
        _ => &["zephserver-plugin", "zeph-edge", "zeph-contract"],
    }
}

/// Third-party crates that only some may use.
fn reserved(dependency: &str) -> Option<&'static [&'static str]> {
    match dependency {
        "abi_stable" | "libloading" | "libc" => Some(&["zeph-abi"]),
        _ => None,
    }
}

fn forbidden(name: &str, dependency: &str, ours: &BTreeSet<String>) -> bool {
    let wrong_own = ours.contains(dependency) && !allowed(name).contains(&dependency);
    let wrong_reserved = reserved(dependency).is_some_and(|users| !users.contains(&name));
    let plain_data = name == "zeph-contract" && !["serde", "serde_json"].contains(&dependency);
    wrong_own || wrong_reserved || plain_data
}

#[test]
fn crates_import_only_what_the_plan_allows() {
    let metadata = metadata();
    let ours: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    assert!(ours.contains("hello") && ours.contains("zephserver"), "{ours:?}");
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let dependencies = package.dependencies.iter().filter(|dependency| {
            dependency.kind == DependencyKind::Normal || ours.contains(&dependency.name)
        });
        for dependency in dependencies {
            if forbidden(&package.name, &dependency.name, &ours) {
                wrong.push(format!("{} must not import {}", package.name, dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_plan_bites() {
    let ours: BTreeSet<String> =
        ["zephserver", "zeph-abi", "zephserver-plugin", "room", "router"].map(String::from).into();
    for (name, dependency) in [
        ("zephserver", "room"),
        ("zephserver", "zephserver-plugin"),
        ("room", "router"),
        ("room", "zephserver"),
        ("room", "zeph-abi"),
        ("zephserver-plugin", "zephserver"),
        ("zeph-abi", "zephserver-plugin"),
        ("zephserver", "libloading"),
        ("zeph-contract", "tokio"),
    ] {
        assert!(forbidden(name, dependency, &ours), "{name} → {dependency}");
    }
    assert!(!forbidden("room", "zephserver-plugin", &ours));
}

/// What is linked in must be free to be used: the same list as in deny.toml.
#[test]
fn licences_are_permissive() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).exec().unwrap();
    let allowed = [
        "MIT",
        "Apache-2.0",
        "ISC",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "MPL-2.0",
        "Zlib",
        "CC0-1.0",
        "Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception",
    ];
    let is_free = |licence: &str| {
        // Each part of an AND must be allowed; of an OR, one.
        licence.split(" AND ").all(|part| {
            let part = part.trim_matches(['(', ')']);
            part.split(" OR ").flat_map(|one| one.split('/')).any(|one| allowed.contains(&one.trim()))
        })
    };
    let wrong: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| !package.license.as_deref().is_some_and(is_free))
        .map(|package| format!("{} {:?}", package.name, package.license))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The server reads events and error codes of the contract, and nothing of sockets and rooms.
#[test]
fn the_server_knows_no_room_and_no_plugin() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../core/server/src");
    let mut wrong = Vec::new();
    let mut folders = vec![std::path::PathBuf::from(root)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for module in ["peer", "request", "room", "session", "wire"] {
                if text.contains(&format!("zeph_contract::{module}")) {
                    wrong.push(format!("{} imports zeph_contract::{module}", path.display()));
                }
            }
            if text.contains("unsafe") && !text.contains("forbid(unsafe_code)") {
                wrong.push(format!("{} is unsafe", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
