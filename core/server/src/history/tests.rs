use super::writer::{FILE, LARGEST, OLDER};
use super::*;

fn entry(cause: &str) -> Entry {
    Entry::new("a/A", What::Failed).because(cause)
}

/// A server's history in this folder, from its start to its end.
fn run(folder: &Path, note: impl FnOnce(&History)) -> History {
    let history = History::default();
    let writer = history.open(folder);
    let thread = std::thread::spawn(move || writer.run());
    note(&history);
    history.close();
    thread.join().unwrap();
    history
}

fn causes(history: &History) -> Vec<String> {
    history.newest(usize::MAX, |_| true).into_iter().filter_map(|entry| entry.cause).collect()
}

#[test]
fn a_line_has_what_is_known() {
    let entry = Entry { at: 17, ..entry("boom").of_build(3, "0123456789abcdef") };
    let line =
        r#"{"at":17,"name":"a/A","what":"failed","generation":3,"hash":"0123456789ab","cause":"boom"}"#;
    assert_eq!(serde_json::to_string(&entry).unwrap(), line);
    assert_eq!(serde_json::from_str::<Entry>(line).unwrap(), entry);
    let left_behind = Entry { at: 17, retry_at: Some(18), ..Entry::new("a", What::LeftBehind) };
    let line = r#"{"at":17,"name":"a","what":"left_behind","retry_at":18}"#;
    assert_eq!(serde_json::to_string(&left_behind).unwrap(), line);
    assert_eq!(serde_json::from_str::<Entry>(line).unwrap(), left_behind);
}

#[test]
fn what_was_noted_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), |history| history.record(entry("one")));
    let history = run(folder.path(), |history| history.record(entry("two")));
    assert_eq!(causes(&history), ["one", "two"]);
    assert_eq!(history.lost(), 0);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(folder.path().join(FILE)).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_full_file_becomes_the_older_one() {
    let folder = tempfile::tempdir().unwrap();
    let size = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().len();
    let long = |number: u32| entry(&format!("{number} {}", "x".repeat(1900)));
    for round in 0..3 {
        // Fewer than may wait for the disk, and more than a file has room for.
        let history = run(folder.path(), |history| {
            (0..600).for_each(|number| history.record(long(round * 600 + number)));
        });
        assert_eq!(history.lost(), 0);
        assert!(size(FILE) <= LARGEST && size(OLDER) <= LARGEST);
    }
    let numbers: Vec<u32> = causes(&run(folder.path(), |_| {}))
        .iter()
        .map(|cause| cause.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!((500..1200).contains(&numbers.len()), "the oldest are gone: {}", numbers.len());
    assert_eq!(numbers.last(), Some(&1799));
    assert!(numbers.is_sorted());
}

#[test]
fn memory_is_bounded() {
    let history = History::default();
    (0..CAPACITY + 5).for_each(|number| history.record(entry(&number.to_string())));
    let causes = causes(&history);
    assert_eq!((causes.len(), causes[0].as_str()), (CAPACITY, "5"));
}

#[test]
fn torn_and_strange_lines_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let good = serde_json::to_string(&entry("good")).unwrap();
    let strange = r#"{"at":1,"name":"a/A","what":"danced"}"#;
    std::fs::write(folder.path().join(FILE), format!("{good}\n\n\u{1}\n{strange}\n{}", &good[..20])).unwrap();
    run(folder.path(), |history| history.record(entry("next")));
    assert_eq!(causes(&run(folder.path(), |_| {})), ["good", "next"]);
}

#[test]
fn a_disk_that_fails_costs_lines_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let history = History::default();
    let mut writer = history.open(&missing);
    for cause in ["one", "two"] {
        history.record(entry(cause));
        writer.write(&entry(cause));
    }
    assert_eq!((history.lost(), causes(&history).len()), (2, 2));
    std::fs::create_dir(&missing).unwrap();
    writer.write(&entry("three"));
    assert_eq!(history.lost(), 2);
    assert_eq!(causes(&run(&missing, |_| {})), ["three"]);
}

#[test]
fn a_disk_that_is_too_slow_costs_lines_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::default();
    let writer = history.open(folder.path());
    (0..WAITING + 3).for_each(|number| history.record(entry(&number.to_string())));
    assert_eq!((history.lost(), causes(&history).len()), (3, WAITING + 3));
    let thread = std::thread::spawn(move || writer.run());
    history.close();
    thread.join().unwrap();
    history.record(entry("after the end"));
    assert_eq!(history.lost(), 3);
    assert_eq!(causes(&run(folder.path(), |_| {})).len(), WAITING);
}

#[test]
fn a_cause_is_cut_between_letters() {
    assert_eq!(entry("ü").cause.unwrap(), "ü");
    assert_eq!(entry(&"ü".repeat(LONGEST + 1)).cause.unwrap(), format!("{}…", "ü".repeat(LONGEST)));
}

#[test]
fn a_name_means_a_service_or_a_library() {
    let service = entry("");
    assert!(service.is_of("a/A") && service.is_of("a"));
    assert!(!service.is_of("a/AB") && !service.is_of("A") && !service.is_of("a/"));
    assert!(!Entry::new("ab/A", What::Ready).is_of("a"));
    assert!(!Entry::new("a/A@two", What::Ready).is_of("a/A"));
}

#[test]
fn a_server_that_died_is_told_by_the_next() {
    let history = History::default();
    let cause = |history: &History| history.last(|_| true).unwrap().cause.unwrap();
    history.server_starts();
    assert!(!cause(&history).contains("died"));
    history.server_starts();
    assert!(cause(&history).contains("died"));
    history.record(Entry::new(SERVER, What::Stopped));
    history.server_starts();
    assert!(!cause(&history).contains("died"));
}
