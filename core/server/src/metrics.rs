//! What `status` says, as Prometheus reads it: text format 0.0.4.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Number, Value, json};

/// The format, as HTTP names it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One number of `status`.
struct Figure {
    name: &'static str,
    kind: &'static str,
    /// Where `status`, or its view of a service, has it: a JSON pointer.
    place: &'static str,
    help: &'static str,
}

const fn gauge(name: &'static str, place: &'static str, help: &'static str) -> Figure {
    Figure { name, kind: "gauge", place, help }
}

const fn counter(name: &'static str, place: &'static str, help: &'static str) -> Figure {
    Figure { name, kind: "counter", place, help }
}

const OF_SERVER: &[Figure] = &[
    gauge("zephserver_start_time_seconds", "/started", "When the server started, in seconds since 1970."),
    gauge("zephserver_plugin_copies", "/generations/copies", "Copies of plugins that were loaded."),
    gauge("zephserver_plugin_copies_limit", "/generations/limit", "Copies that can be loaded at most."),
    gauge("zephserver_calls_pending", "/calls/pending", "Calls whose answers come later."),
    counter("zephserver_calls_slow_total", "/calls/slow", "Direct calls that took more than a second."),
    counter("zephserver_calls_timeouts_total", "/calls/timeouts", "Calls that were not answered in time."),
    gauge("zephserver_pool_threads", "/pool/threads", "Threads of the pool."),
    gauge("zephserver_pool_stuck", "/pool/stuck", "Threads of the pool whose call is overdue."),
    gauge("zephserver_pool_queued", "/pool/queued", "Jobs that wait for a thread of the pool."),
    gauge("zephserver_cluster_nodes_up", "/cluster/up", "Other nodes of the cluster that are up."),
    gauge("zephserver_cluster_nodes_known", "/cluster/known", "Other nodes of the cluster that are known."),
    counter("zephserver_cluster_events_said_total", "/cluster/said", "Events said to other nodes."),
    counter("zephserver_cluster_events_heard_total", "/cluster/heard", "Events of other nodes handed on."),
    counter("zephserver_cluster_gaps_total", "/cluster/gaps", "Gaps in what other nodes said."),
    counter(
        "zephserver_cluster_evictions_total",
        "/cluster/evictions",
        "Nodes that took nothing for too long.",
    ),
    gauge(
        "zephserver_cluster_backlog",
        "/cluster/backlog",
        "Events kept for nodes that do not have them yet.",
    ),
    counter(
        "zephserver_cluster_events_lost_total",
        "/cluster/lost",
        "Events not kept while a node lacked them.",
    ),
    counter("zephserver_cluster_refused_total", "/cluster/refused", "Connections and datagrams refused."),
    counter("zephserver_log_lines_lost_total", "/log_lines_lost", "Log lines that could not be written."),
    counter(
        "zephserver_history_lines_lost_total",
        "/history_lines_lost",
        "Lines of the history that could not be written.",
    ),
];

const OF_SERVICES: &[Figure] = &[
    gauge("zephserver_service_generation", "/generation", "How often its library was loaded."),
    counter("zephserver_service_restarts_total", "/restarts", "How often it was started again."),
    counter("zephserver_service_failures_total", "/failures", "How often it failed."),
    counter(
        "zephserver_service_slow_calls_total",
        "/slow_calls",
        "Calls to it that took more than a second.",
    ),
    counter("zephserver_service_events_dropped_total", "/events_dropped", "Events that it did not get."),
];

/// What the machine says of this process.
pub struct Process {
    /// Memory that it has, in bytes.
    pub memory: Option<u64>,
    /// Files that it has open.
    pub files: Option<u64>,
}

impl Process {
    pub fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = resident.and_then(|size| size.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        // The folder that is read is open, too.
        let files = fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as u64);
        Self { memory: kibibytes.map(|kibibytes| kibibytes * 1024), files }
    }
}

/// The whole page.
pub fn page(status: &Value, process: &Process) -> String {
    let mut page = Page(String::new());
    let node = [("version", text(&status["version"])), ("node", text(&status["node"]))];
    page.one(&gauge("zephserver_up", "", "1: the server answers."), &[], &json!(1));
    page.one(&gauge("zephserver_info", "", "Which server this is."), &node, &json!(1));
    for figure in OF_SERVER {
        page.one(figure, &[], status.pointer(figure.place).unwrap_or(&Value::Null));
    }
    let draining = status["generations"]["draining"].as_array().map(Vec::len);
    let of_draining = gauge("zephserver_generations_draining", "", "Replaced instances that have not ended.");
    page.one(&of_draining, &[], &json!(draining));
    services(&mut page, status["services"].as_array().map(Vec::as_slice).unwrap_or_default());
    let memory = gauge("process_resident_memory_bytes", "", "Memory of the process, in bytes.");
    page.one(&memory, &[], &json!(process.memory));
    page.one(&gauge("process_open_fds", "", "Files that the process has open."), &[], &json!(process.files));
    page.0
}

fn services(page: &mut Page, services: &[Value]) {
    let state = gauge("zephserver_service_state", "", "1: the service is in this state.");
    let states = services.iter().map(|service| vec![name_of(service), ("state", text(&service["state"]))]);
    page.family(&state, states.map(|labels| (labels, json!(1))));
    for figure in OF_SERVICES {
        page.each(figure, services, |service| service.pointer(figure.place).cloned().unwrap_or_default());
    }
    let refused = gauge("zephserver_service_refused", "", "1: the newest build of its library was refused.");
    page.each(&refused, services, |service| json!(u8::from(!service["refused"].is_null())));
    let numbers = services.iter().flat_map(|service| {
        let mut numbers = BTreeMap::new();
        collect(&service["metrics"], "", &mut numbers);
        let labels = move |name| vec![name_of(service), ("name", name)];
        numbers.into_iter().map(move |(name, number)| (labels(name), Value::Number(number)))
    });
    page.family(&gauge("zephserver_service_metric", "", "What the service reports of itself."), numbers);
}

fn name_of(service: &Value) -> (&'static str, String) {
    ("service", text(&service["name"]))
}

/// Every number in what a service reports, by its way there: `bytes.in`.
fn collect(value: &Value, way: &str, found: &mut BTreeMap<String, Number>) {
    match value {
        Value::Number(number) => {
            found.insert(way.into(), number.clone());
        }
        Value::Object(object) => {
            for (key, value) in object {
                let way = if way.is_empty() { key.clone() } else { format!("{way}.{key}") };
                collect(value, &way, found);
            }
        }
        _ => {}
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

/// Names of labels with their values.
type Labels = Vec<(&'static str, String)>;

struct Page(String);

impl Page {
    /// A family of one sample.
    fn one(&mut self, figure: &Figure, labels: &[(&'static str, String)], value: &Value) {
        self.family(figure, std::iter::once((labels.to_vec(), value.clone())));
    }

    /// A family of one sample for each service.
    fn each(&mut self, figure: &Figure, services: &[Value], value: impl Fn(&Value) -> Value) {
        self.family(figure, services.iter().map(|service| (vec![name_of(service)], value(service))));
    }

    /// Head and samples of a family. What is no number is left out; the head, where there is no sample.
    fn family(&mut self, figure: &Figure, samples: impl Iterator<Item = (Labels, Value)>) {
        let Figure { name, kind, help, .. } = figure;
        let lines = samples.filter(|(_, value)| value.is_number()).map(|(labels, value)| {
            let labels = labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value)));
            let labels = labels.collect::<Vec<_>>().join(",");
            match labels.as_str() {
                "" => format!("{name} {value}\n"),
                labels => format!("{name}{{{labels}}} {value}\n"),
            }
        });
        let lines: String = lines.collect();
        if !lines.is_empty() {
            self.0.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}"));
        }
    }
}

/// The value of a label, as it stands between quotation marks.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn status() -> Value {
        let metrics = json!({"connections": 3, "bytes": {"in": 7, "out": 1.5}, "note": "x", "list": [1]});
        json!({
            "version": "0.1.0", "node": "a \"b\" \\ c\nd", "started": 1_700_000_000,
            "generations": {"copies": 6, "limit": 900, "draining": [1, 2]},
            "calls": {"pending": 1, "slow": 2, "timeouts": 3},
            "pool": {"threads": 4, "stuck": 5, "queued": 6},
            "log_lines_lost": 7,
            "history_lines_lost": 10,
            "services": [
                {
                    "name": "room/Room", "state": "enabled", "generation": 2, "restarts": 1, "failures": 1,
                    "slow_calls": 8, "events_dropped": 9, "refused": "it panicked", "metrics": metrics,
                },
                {
                    "name": "tasks/Tasks@two", "state": "waiting", "generation": null, "restarts": 0,
                    "failures": 0, "slow_calls": 0, "events_dropped": 0, "refused": null, "metrics": null,
                },
            ],
        })
    }

    #[test]
    fn each_figure_has_its_line() {
        let page = page(&status(), &Process { memory: Some(4096), files: None });
        for line in [
            "zephserver_up 1",
            "zephserver_info{version=\"0.1.0\",node=\"a \\\"b\\\" \\\\ c\\nd\"} 1",
            "zephserver_start_time_seconds 1700000000",
            "zephserver_plugin_copies 6",
            "zephserver_plugin_copies_limit 900",
            "zephserver_generations_draining 2",
            "zephserver_calls_pending 1",
            "zephserver_calls_slow_total 2",
            "zephserver_calls_timeouts_total 3",
            "zephserver_pool_threads 4",
            "zephserver_pool_stuck 5",
            "zephserver_pool_queued 6",
            "zephserver_log_lines_lost_total 7",
            "zephserver_history_lines_lost_total 10",
            "zephserver_service_state{service=\"room/Room\",state=\"enabled\"} 1",
            "zephserver_service_state{service=\"tasks/Tasks@two\",state=\"waiting\"} 1",
            "zephserver_service_generation{service=\"room/Room\"} 2",
            "zephserver_service_restarts_total{service=\"room/Room\"} 1",
            "zephserver_service_failures_total{service=\"room/Room\"} 1",
            "zephserver_service_slow_calls_total{service=\"room/Room\"} 8",
            "zephserver_service_events_dropped_total{service=\"room/Room\"} 9",
            "zephserver_service_refused{service=\"room/Room\"} 1",
            "zephserver_service_refused{service=\"tasks/Tasks@two\"} 0",
            "zephserver_service_metric{service=\"room/Room\",name=\"connections\"} 3",
            "zephserver_service_metric{service=\"room/Room\",name=\"bytes.in\"} 7",
            "zephserver_service_metric{service=\"room/Room\",name=\"bytes.out\"} 1.5",
            "process_resident_memory_bytes 4096",
        ] {
            assert_eq!(page.lines().filter(|other| *other == line).count(), 1, "{line} in:\n{page}");
        }
        for part in ["process_open_fds", "service_generation{service=\"tasks", "note", "list"] {
            assert!(!page.contains(part), "{part} in:\n{page}");
        }
    }

    #[test]
    fn each_family_has_one_head_and_its_samples_below() {
        let page = page(&status(), &Process { memory: Some(1), files: Some(1) });
        assert!(page.ends_with('\n') && !page.contains("\n\n"));
        let mut seen = BTreeSet::new();
        let mut family = String::new();
        let mut lines = page.lines();
        while let Some(line) = lines.next() {
            if let Some(head) = line.strip_prefix("# HELP ") {
                family = head.split(' ').next().unwrap().into();
                assert!(seen.insert(family.clone()), "{family} twice");
                let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {family} ")).unwrap();
                assert_eq!(kind == "counter", family.ends_with("_total"), "{family} is a {kind}");
            } else {
                assert_eq!(line.split(['{', ' ']).next().unwrap(), family);
            }
        }
    }

    #[test]
    fn the_process_is_there() {
        let process = Process::now();
        assert!(process.memory.unwrap() > 1024 * 1024 && process.files.unwrap() > 2);
    }
}
