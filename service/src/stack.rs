//! Room on the stacks of threads for what strangers may send.

/// Bytes of a thread's stack: addresses, of which only what is used takes memory. The AMQP client reads a message's headers by recursion, some
/// kilobytes for each table within a table, on a thread whose stack nobody else can choose; a frame of 128 KiB holds 26,000 of them.
const STACK: usize = 256 << 20;

/// Runs a program where its stack, and that of every thread which chooses none of its own, has enough room. To be called before any other
/// thread is started.
pub fn with_room<T: Send + 'static>(program: impl FnOnce() -> T + Send + 'static) -> T {
    const VARIABLE: &str = "RUST_MIN_STACK";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: there is no other thread that could read the environment.
        unsafe { std::env::set_var(VARIABLE, STACK.to_string()) };
        // The standard library reads it with the first thread, and what this process starts is not to have it.
        _ = std::thread::spawn(|| ()).join();
        // SAFETY: as above; that thread has ended.
        unsafe { std::env::remove_var(VARIABLE) };
    }
    // The system chose the stack of the first thread.
    let main = std::thread::Builder::new().name("main".into()).stack_size(STACK).spawn(program);
    match main.expect("a process can start a thread").join() {
        Ok(ended) => ended,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
