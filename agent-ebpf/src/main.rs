//! The eBPF programs of the node agent: the list. Built for the bpf target by `cargo xtask ebpf`, embedded in `weir-agent`.
//!
//! One file per concern in `program/`. Programs are not named like their section: the linker takes that for the same symbol.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
#[expect(unsafe_code, reason = "kernel helpers take raw pointers, the verifier proves each access")]
mod program;

/// Dual, because some helpers are only given to programs that say so.
#[cfg(target_arch = "bpf")]
#[expect(unsafe_code, reason = "a symbol in a named section is how a program states its licence")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program in which it could be.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("weir-ebpf holds kernel programs; build them with `cargo xtask ebpf`");
    std::process::exit(2);
}
