//! Reload truth: where code that just answered really came from.

use std::ffi::{CStr, c_void};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The file that an address of this process was loaded from, and where that file begins in memory.
pub(crate) fn origin(address: *const c_void) -> Option<(PathBuf, usize)> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: `info` is valid for writing; dladdr accepts any address.
    if unsafe { libc::dladdr(address, &mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr answered a C string that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())).to_path_buf();
    Some((path, info.dli_fbase as usize))
}

/// Nanoseconds of `CLOCK_MONOTONIC`: the clock of [`Context::deadline`](crate::Context).
pub fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A library as it lies in memory.
pub(crate) struct Image {
    /// Where it ends.
    pub end: usize,
    /// Its segments that nobody writes to: in memory they are as they are in the file.
    pub segments: Vec<Range<usize>>,
    /// Its GNU build id, if it has one.
    pub build_id: Option<Vec<u8>>,
}

impl Image {
    /// One of which nothing is known but where it begins.
    pub fn at(base: usize) -> Self {
        Self { end: base, segments: Vec::new(), build_id: None }
    }
}

struct Search {
    base: usize,
    found: Option<Image>,
}

/// The library that is loaded at `base`.
pub(crate) fn image(base: usize) -> Option<Image> {
    let mut search = Search { base, found: None };
    // SAFETY: the callback gets `search` back and runs only during this call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&mut search as *mut Search).cast()) };
    search.found
}

unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> i32 {
    // SAFETY: both pointers come from `image` by way of dl_iterate_phdr.
    let (info, search) = unsafe { (&*info, &mut *data.cast::<Search>()) };
    if info.dlpi_addr as usize != search.base {
        return 0;
    }
    let (mut image, mut is_patched) = (Image::at(search.base), false);
    // SAFETY: the loader describes its own table.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize) };
    for header in headers {
        let (start, size) = (search.base + header.p_vaddr as usize, header.p_memsz as usize);
        match header.p_type {
            libc::PT_LOAD => {
                image.end = image.end.max(start + size);
                if header.p_flags & libc::PF_W == 0 {
                    image.segments.push(start..start + size);
                }
            }
            // SAFETY: a loaded library's dynamic section is mapped for its whole size.
            libc::PT_DYNAMIC => is_patched = unsafe { has_patched_text(start, size) },
            libc::PT_NOTE if image.build_id.is_none() => {
                // SAFETY: a loaded note segment is mapped for its whole size.
                let notes = unsafe { std::slice::from_raw_parts(start as *const u8, size) };
                image.build_id = gnu_build_id(notes);
            }
            _ => {}
        }
    }
    if is_patched {
        image.segments.clear();
    }
    search.found = Some(image);
    1
}

/// Whether the loader wrote into segments that are read-only otherwise (ELF, `DT_TEXTREL`).
///
/// # Safety
/// A dynamic section is mapped there.
unsafe fn has_patched_text(start: usize, size: usize) -> bool {
    const TEXTREL: u64 = 22;
    const FLAGS: u64 = 30;
    const FLAG_TEXTREL: u64 = 4;
    // SAFETY: the caller vouches for it; an entry is two words.
    let entries = unsafe { std::slice::from_raw_parts(start as *const [u64; 2], size / 16) };
    let is_patch = |[tag, value]: &[u64; 2]| *tag == TEXTREL || *tag == FLAGS && value & FLAG_TEXTREL != 0;
    entries.iter().any(is_patch)
}

/// Gives back the memory of segments that nobody writes to. What somebody touches again comes back from the file.
pub(crate) fn release(segments: &[Range<usize>]) {
    const PAGE: usize = 4096;
    for segment in segments {
        // Whole pages only: the first and the last may be shared with a segment that is written to.
        let (start, end) = (segment.start.next_multiple_of(PAGE), segment.end & !(PAGE - 1));
        if start < end {
            // SAFETY: the pages are those of a private mapping of a file that never changes, and were never
            // written to, so that the file has their content.
            unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
}

/// Notes: name size, description size, type; then name and description, each padded to four bytes.
fn gnu_build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let word = |notes: &[u8], at: usize| Some(u32::from_ne_bytes(notes.get(at..at + 4)?.try_into().ok()?));
    loop {
        let (name_size, size, kind) = (word(notes, 0)? as usize, word(notes, 4)? as usize, word(notes, 8)?);
        let description = 12 + name_size.next_multiple_of(4);
        if kind == NT_GNU_BUILD_ID && notes.get(12..12 + name_size)? == b"GNU\0" {
            return Some(notes.get(description..description + size)?.to_vec());
        }
        notes = notes.get(description + size.next_multiple_of(4)..)?;
    }
}
