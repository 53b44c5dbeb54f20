//! Slots whose model is copied for each of them.

use super::*;
use crate::memory::Memory;

/// Writes into itself.
struct Copied(Vec<String>);

impl Model for Copied {
    fn gather(self: Arc<Self>, _: &[&[Tensor]]) -> Result<Gathered, EngineError> {
        Ok(Box::new(|| Ok(Vec::new())))
    }

    fn for_another_slot(self: Arc<Self>) -> Arc<dyn Model> {
        self
    }

    fn writes(&self) -> &[String] {
        &self.0
    }
}

fn package() -> Arc<Package> {
    let text = "name = \"m\"\nengine = \"torchscript\"\nfile = \"model.pt\"\n\
        inputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }]\n\
        outputs = [{ name = \"y\", datatype = \"FP32\", shape = [-1, 4] }]\n";
    let manifest = sluice_core::Manifest::parse(text).expect("a manifest");
    Arc::new(Package { manifest, file: Default::default(), fingerprint: None, pinned: None })
}

/// How many of them become ready, once that is as many as expected or has not been for long.
fn ready(slots: &[Slot], expected: usize) -> usize {
    let deadline = Instant::now() + Duration::from_secs(30);
    let count = || slots.iter().filter(|slot| slot.is_ready()).count();
    while count() != expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    count()
}

#[test]
fn a_slot_takes_work_once_there_is_memory_for_its_copy() {
    let memory = Memory::new([("cpu".to_owned(), 100)].into());
    let mut model = memory.reserve(Device::Cpu, 30).expect("fits");
    model.loaded(0);
    let (finished, _finished) = mpsc::unbounded_channel();
    for (writes, expected) in [(vec!["n".to_owned()], 2), (Vec::new(), 3)] {
        let shared: Arc<dyn Model> = Arc::new(Copied(writes));
        let start = |index| start(&package(), Arc::clone(&shared), &model.copies(), index, &finished).expect("starts");
        let mut slots: Vec<Slot> = (1..4).map(start).collect();
        assert_eq!(ready(&slots, expected), expected);
        // All that there is for copies is taken, or nothing is.
        assert_eq!(memory.reserve(Device::Cpu, 70).is_ok(), expected == 3);
        if expected == 2 {
            let gone = slots.iter().position(Slot::is_ready).expect("two are");
            slots.remove(gone).end().join().expect("ends");
            assert_eq!(ready(&slots, 2), 2, "the third has the memory of the first");
        }
        slots.into_iter().for_each(|slot| slot.end().join().expect("ends"));
    }
    assert!(memory.reserve(Device::Cpu, 70).is_ok(), "all is given back");
}
