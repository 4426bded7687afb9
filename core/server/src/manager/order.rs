//! In which order services start: as SERVICE_LIST names them, but none before what it needs.

use crate::messages::Listed;
use crate::settings::ServicePath;

/// Whether a need means this service: it may be a service's path, or a library's name: then every
/// service of it.
pub fn is_meant(need: &str, path: &ServicePath) -> bool {
    need.strip_prefix(path.library.as_str()).is_some_and(|rest| rest.is_empty() || path.to_string() == need)
}

/// What is said of services of which each needs the next, and the last the first.
pub fn circle<'a>(paths: impl Iterator<Item = &'a ServicePath> + Clone) -> String {
    let names: Vec<String> = paths.clone().chain(paths.take(1)).map(ServicePath::to_string).collect();
    format!("services need each other in a circle: {}", names.join(" → "))
}

/// Indices into `listed` in start order. An error names what is missing or runs in a circle.
pub fn start_order(listed: &[Listed]) -> Result<Vec<usize>, (usize, String)> {
    let mut order = Vec::new();
    let mut path = Vec::new();
    for at in 0..listed.len() {
        visit(listed, at, &mut path, &mut order)?;
    }
    Ok(order)
}

fn visit(
    listed: &[Listed],
    at: usize,
    path: &mut Vec<usize>,
    order: &mut Vec<usize>,
) -> Result<(), (usize, String)> {
    if order.contains(&at) {
        return Ok(());
    }
    if let Some(start) = path.iter().position(|known| *known == at) {
        return Err((at, circle(path[start..].iter().map(|at| &listed[*at].path))));
    }
    path.push(at);
    for need in &listed[at].needs {
        let found: Vec<usize> =
            (0..listed.len()).filter(|other| is_meant(need, &listed[*other].path)).collect();
        if found.is_empty() {
            return Err((at, format!("{} needs {need}, which SERVICE_LIST does not name", listed[at].path)));
        }
        for other in found {
            visit(listed, other, path, order)?;
        }
    }
    path.pop();
    order.push(at);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ServiceSettings;

    fn listed(services: &[(&str, &[&str])]) -> Vec<Listed> {
        let one = |(path, needs): &(&str, &[&str])| Listed {
            path: path.parse().unwrap(),
            settings: ServiceSettings::default(),
            needs: needs.iter().map(|need| need.to_string()).collect(),
        };
        services.iter().map(one).collect()
    }

    #[test]
    fn needs_come_first_else_the_list_decides() {
        let list = listed(&[("a/A", &["c/C"]), ("b/B", &[]), ("c/C", &["b"])]);
        assert_eq!(start_order(&list).unwrap(), [1, 2, 0]);
    }

    #[test]
    fn circles_and_missing_needs_are_named() {
        let circle = start_order(&listed(&[("a/A", &["b/B"]), ("b/B", &["a/A"])])).unwrap_err();
        assert_eq!(circle.1, "services need each other in a circle: a/A → b/B → a/A");
        let missing = start_order(&listed(&[("a/A", &["x/X"])])).unwrap_err();
        assert_eq!(missing.1, "a/A needs x/X, which SERVICE_LIST does not name");
    }
}
