//! Has the linker export the functions of `zeph_abi::export_key_hook!` from the program, so that plugins get
//! them instead of the C library's.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is_set = |key: &str, value: &str| std::env::var(key).is_ok_and(|is| is == value);
    if is_set("CARGO_CFG_TARGET_OS", "linux") && is_set("CARGO_CFG_TARGET_ENV", "gnu") {
        for function in ["pthread_key_create", "pthread_key_delete", "pthread_create"] {
            println!("cargo:rustc-link-arg-bin=zephserver-start=-Wl,--export-dynamic-symbol={function}");
        }
    }
}
