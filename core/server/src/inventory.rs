//! What SERVICE_LIST asks for, opened and checked: every library, every setting, every need.

use std::sync::Arc;

use crate::error::Error;
use crate::loader::{self, Loaded, Loader};
use crate::manager::{listed, start_order};
use crate::messages::Listed;
use crate::settings::{Faults, ServicePath, Settings, unclaimed};

/// What is to live.
pub struct Inventory {
    /// The libraries.
    pub loaded: Vec<Arc<Loaded>>,
    /// The services, in start order.
    pub listed: Vec<Listed>,
    /// What is to be said in the log.
    pub remarks: Vec<String>,
}

/// Opens the libraries of SERVICE_LIST and checks what the settings say to their services. `wanted`
/// is asked before each library whether to go on.
pub fn open(settings: &Settings, loader: &Loader, wanted: impl Fn() -> bool) -> Result<Inventory, Error> {
    open_by(settings, |path| open_library(settings, loader, path), wanted)
}

/// The same, where each library comes from `open_library`: it may be open already.
pub fn open_by(
    settings: &Settings,
    mut open_library: impl FnMut(&ServicePath) -> Result<Arc<Loaded>, Error>,
    wanted: impl Fn() -> bool,
) -> Result<Inventory, Error> {
    let mut loaded: Vec<Arc<Loaded>> = Vec::new();
    let mut services = Vec::new();
    let mut remarks = Vec::new();
    for path in &settings.services {
        if !wanted() {
            return Err(Error::Stopped);
        }
        let known = loaded.iter().find(|known| known.name == path.library).cloned();
        let library = match known.map_or_else(|| open_library(path), Ok) {
            Ok(library) => library,
            Err(Error::Start(reason)) if settings.is_optional(path) => {
                remarks.push(format!("{path} is optional and does not start: {reason}"));
                continue;
            }
            Err(error) => return Err(error),
        };
        services.push(listed(settings, path.clone(), &library, serde_json::Map::new())?);
        if !loaded.iter().any(|known| known.name == library.name) {
            loaded.push(library);
        }
    }
    let kinds = loaded.iter().flat_map(|library| &library.declaration.services);
    remarks.extend(unclaimed(settings, kinds)?);
    crate::cluster::keys(&settings.cluster)?;
    let order = start_order(&services)
        .map_err(|(at, text)| settings.service_fault(&services[at].path, text, "", std::iter::empty()))?;
    let mut services: Vec<Option<Listed>> = services.into_iter().map(Some).collect();
    let listed = order.into_iter().filter_map(|at| services[at].take()).collect();
    Ok(Inventory { loaded, listed, remarks })
}

fn open_library(settings: &Settings, loader: &Loader, path: &ServicePath) -> Result<Arc<Loaded>, Error> {
    let file = settings.library_file(&path.library).ok_or_else(|| missing(settings, path))?;
    let refused = |refusal: loader::Refusal| Error::Start(format!("{path}: {refusal}"));
    let chosen = loader.choose(&path.library, &file).map_err(refused)?;
    Ok(Arc::new(loader.load(&path.library, &chosen, 1).map_err(refused)?))
}

/// No file of this library is along PLUGIN_PATH.
pub fn missing(settings: &Settings, path: &ServicePath) -> Faults {
    let folders = settings.plugin_path.iter().map(|folder| folder.display().to_string());
    let folders = folders.collect::<Vec<_>>().join(", ");
    let library = &path.library;
    let text = format!("service {path}: no lib{library}.so in PLUGIN_PATH ({folders})");
    let known = settings.library_files();
    settings.service_fault(path, text, library, known.keys().map(String::as_str))
}
