//! docs/write-a-plugin.md, done to the letter: a crate outside the workspace, built by its own cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

use zephserver_testkit::TestServer;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().canonicalize().unwrap()
}

/// The code blocks of the page that begin with a file's name as comment: name and content.
fn files_of_the_page() -> Vec<(String, String)> {
    let page = std::fs::read_to_string(root().join("docs/write-a-plugin.md")).unwrap();
    let blocks = page.split("```").skip(1).step_by(2);
    let files = blocks.filter_map(|block| {
        let (_, block) = block.split_once('\n')?;
        let (first, content) = block.split_once('\n')?;
        let name = first.strip_prefix("# ").or_else(|| first.strip_prefix("// "))?;
        Some((name.to_string(), content.to_string()))
    });
    files.collect()
}

/// The other samples in Rust: each is a whole `src/lib.rs`.
fn samples_of_the_page() -> Vec<String> {
    let page = std::fs::read_to_string(root().join("docs/write-a-plugin.md")).unwrap();
    let blocks = page.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("rust\n"));
    blocks.filter(|block| !block.starts_with("// ")).map(str::to_string).collect()
}

fn cargo_build(folder: &Path) {
    // Shares compiled dependencies with the workspace, which a person's first build has not.
    let target = root().join("target");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release"])
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("CARGO_MANIFEST_DIR")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

#[test]
fn the_page_works_as_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    };
    let files = files_of_the_page();
    let source = files.iter().find(|(name, _)| name == "src/lib.rs").expect("the page shows src/lib.rs");
    let lines = source.1.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines <= 24, "about 20 lines, and not {lines}");
    for (name, content) in &files {
        // On the page the path stands for wherever the reader has the sources.
        write(name, &content.replace("/path/to/zephserver", root().to_str().unwrap()));
    }
    std::fs::copy(root().join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    cargo_build(folder.path());
    let library = root().join("target/release/libdice.so");

    let mut server = TestServer::with(&["hello/Hello"]).start();
    let dropped = server.library("dice");
    std::fs::copy(&library, &dropped).unwrap();
    let plugins = server.ask("plugins").unwrap();
    assert!(
        plugins
            .as_array()
            .unwrap()
            .iter()
            .any(|plugin| plugin["name"] == "dice" && plugin["loaded"] == false)
    );
    assert_eq!(server.command(&["start", "dice/Dice"]).code, Some(0));
    let rolled = server.command(&["call", "dice", "roll/1", "2"]);
    let rolls: Vec<u64> = serde_json::from_str(&rolled.stdout).unwrap();
    assert!(rolls.len() == 2 && rolls.iter().all(|roll| (1..=6).contains(roll)), "{rolled:?}");

    // Rebuilt with twenty sides, copied over: it is reloaded by itself.
    write("src/lib.rs", &source.1.replace("6", "1"));
    cargo_build(folder.path());
    std::fs::copy(&library, &dropped).unwrap();
    server.wait_service("dice", "reloaded", |service| service["generation"] == 2);
    assert_eq!(server.call("dice", "roll/1", "3").unwrap(), serde_json::json!([1, 1, 1]));

    // The task and the session of the page.
    let samples = samples_of_the_page();
    assert_eq!(samples.len(), 2);
    for (sample, kind) in samples.iter().zip(["Tasks", "Names"]) {
        write("src/lib.rs", sample);
        cargo_build(folder.path());
        let server = TestServer::with(&[&format!("dice/{kind}")]).start();
        assert_eq!(server.service(&format!("dice/{kind}"))["state"], "enabled");
    }
}
