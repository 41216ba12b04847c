//! Network namespaces, each with a thread of its own that lives in it.

use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace. It goes with the last thread, process or socket in it.
pub struct Space {
    thread: Option<JoinHandle<()>>,
    work: Option<mpsc::Sender<Work>>,
    tid: i32,
}

impl Space {
    pub fn new() -> Self {
        let (work, queue) = mpsc::channel::<Work>();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests of the network need root");
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            while let Ok(work) = queue.recv() {
                work();
            }
        });
        let space = Self { thread: Some(thread), work: Some(work), tid: told.recv().unwrap() };
        space.sh("ip link set lo up");
        space
    }

    /// What `ip ... netns` calls it.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Does something in the namespace. A panic in there is one of the caller's.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        let work = move || {
            let _ = tell.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        };
        self.work.as_ref().unwrap().send(Box::new(work)).unwrap();
        told.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The same with something that waits.
    pub fn block_on<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.run(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(work())
        })
    }

    /// Runs a script of the test's own and gives what it wrote.
    pub fn sh(&self, script: &str) -> String {
        let script = script.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert!(output.status.success(), "{script}: {}", text(&output.stderr));
            text(&output.stdout)
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
