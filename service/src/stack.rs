//! Room on the stacks of threads for what strangers may send.

/// Bytes of a thread's stack: addresses, of which only what is used takes memory. The AMQP client reads a message's headers by recursion, some
/// kilobytes for each table within a table, on a thread whose stack nobody else can choose; a frame of 128 KiB holds 26,000 of them.
const STACK: &str = "268435456";

/// Gives threads that choose no stack of their own enough of it. To be called before the first is started.
pub fn prepare_process() {
    const VARIABLE: &str = "RUST_MIN_STACK";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: there is no other thread yet that could read the environment.
        unsafe { std::env::set_var(VARIABLE, STACK) };
    }
}
