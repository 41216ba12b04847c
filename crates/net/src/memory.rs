/// Gives the kernel back what was freed in the middle of the heap, of every thread's arena. The
/// allocator alone gives back what lies at an arena's end, so a process that was busy once would
/// keep what it held then.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
pub fn return_free_memory() {
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
pub fn return_free_memory() {}
