//! How commands that run others end, and end them.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long the system may take to end what was killed: a GPU's memory is given back first.
const KILLED: Duration = Duration::from_secs(5);
/// How often it is looked whether a group is empty.
const LOOK: Duration = Duration::from_millis(20);

/// The signals that ask this process to end: Ctrl-C, a service manager's, and a terminal's that is closed.
pub struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Ends {
    /// From now on they are heard, and no longer end the process by themselves.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Asks a process of ours to end.
pub fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // SAFETY: kill only sends a signal; the process is ours and has not been waited for.
        unsafe {
            libc::kill(pid, libc::SIGTERM);
        }
    }
}

/// Has the kernel ask a command to end should this process be killed, when nobody else would. Linux alone can; it goes by the thread
/// that starts the command, which must be the main one.
pub fn end_with_us(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: between fork and exec only what is safe in a signal handler may be called: prctl is a bare system call.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// A command in a process group of its own, so that all it starts ends with it. It has the terminal, if there is one, as if a shell had
/// started it; but it cannot be suspended, since nobody would wake it.
pub struct Group {
    child: Child,
    id: i32,
    has_terminal: bool,
    empty: bool,
}

impl Group {
    /// Starts it.
    pub fn start(mut command: Command) -> io::Result<Self> {
        // SAFETY: these only look. One in the background has no terminal to hand on.
        let has_terminal = unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() };
        command.process_group(0).kill_on_drop(true);
        end_with_us(&mut command);
        if has_terminal {
            // SAFETY: these are bare system calls. The child is in its group by then.
            unsafe {
                command.pre_exec(|| {
                    libc::signal(libc::SIGTSTP, libc::SIG_IGN);
                    take_terminal();
                    Ok(())
                });
            }
        }
        let child = command.spawn().inspect_err(|_| {
            if has_terminal {
                take_terminal();
            }
        })?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| io::Error::other("it has no id"))?;
        Ok(Self { child, id, has_terminal, empty: false })
    }

    /// Waits for the command itself.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks all of the group to end.
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Waits until nobody is left; whoever has not ended after `grace` is killed. Whether all have ended.
    pub async fn end(&mut self, grace: Duration) -> bool {
        for (signal, patience) in [(libc::SIGTERM, grace), (libc::SIGKILL, KILLED)] {
            self.signal(signal);
            let ended = async {
                // What has not been waited for still counts as there.
                let _ = self.child.wait().await;
                while self.signal(0) {
                    tokio::time::sleep(LOOK).await;
                }
            };
            if tokio::time::timeout(patience, ended).await.is_ok() {
                self.empty = true;
                return true;
            }
        }
        false
    }

    /// Whether there is anybody left, whom this process may signal or not.
    fn signal(&self, signal: i32) -> bool {
        // SAFETY: kill only sends a signal, to a group that this process made.
        let sent = unsafe { libc::kill(-self.id, signal) } == 0;
        sent || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.empty {
            self.signal(libc::SIGKILL);
        }
        if self.has_terminal {
            take_terminal();
        }
    }
}

/// Makes this process's group the one that reads the terminal. Only system calls.
fn take_terminal() {
    // SAFETY: a process in the background would be stopped for this by SIGTTOU, if it did not ignore that meanwhile.
    unsafe {
        let before = libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        libc::tcsetpgrp(libc::STDIN_FILENO, libc::getpgrp());
        libc::signal(libc::SIGTTOU, before);
    }
}
