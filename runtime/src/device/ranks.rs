//! Tests of several ranks on CPU devices: shards, turns, collectives, and what happens when a rank is gone.

use super::EntryKind;
use super::cpu::Cpu;
use crate::communicator::{Cause, Communicator, guarded, local};
use crate::device::Device;
use crate::error::Error;
use crate::fixture::{Builder, across, add_up, at, instruction, launch, repeat};
use dspc_program::ElementType::{Bf16, F32};
use dspc_program::{Action, Arg, BufferId, Collective, CollectiveKind, Over, Part, Place, Role, Shard, When};
use std::sync::Arc;

/// Runs `work` on every rank of a world, each with a device of its own.
fn each_rank<T: Send>(
    builder: &Builder,
    work: impl Fn(&mut Cpu, &dyn Communicator) -> Result<T, Error> + Sync,
) -> Vec<Result<T, Error>> {
    let dir = tempfile::tempdir().unwrap();
    let kernels = builder.compile(dir.path());
    let (kernels, work) = (&kernels, &work);
    std::thread::scope(|scope| {
        let rank = |communicator: local::Local| {
            scope.spawn(move || {
                let communicator: Arc<dyn Communicator> = Arc::new(communicator);
                guarded(&*communicator, || {
                    let mut device = Cpu::of_rank(&builder.program, kernels, 2, Arc::clone(&communicator))?;
                    work(&mut device, &*communicator)
                })
            })
        };
        let threads: Vec<_> = local::ranks(builder.program.world()).into_iter().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn floats(device: &Cpu, buffer: BufferId, slot: u64, count: usize) -> Vec<f32> {
    let mut out = vec![0f32; count];
    device.read(buffer, slot, 0, bytemuck::cast_slice_mut(&mut out)).unwrap();
    out
}

fn own(buffer: BufferId, elements: u64) -> Place {
    Place { shard: Some(Shard { group: 0, elements }), ..Place::of(buffer) }
}

fn exchange(kind: CollectiveKind, parts: Vec<Part>) -> dspc_program::Instruction {
    instruction(Action::Collective(Collective { kind, group: 0, parts }))
}

#[test]
fn a_sum_in_place_and_a_gather_make_all_ranks_alike() {
    const SHARD: u64 = 700;
    for world in [1, 2, 3, 4, 8] {
        let mut b = Builder::new();
        across(&mut b, world);
        let all = SHARD * world;
        let gradient = b.buffer("gradient", F32, all, 1, Role::Inner);
        let sum = add_up(&mut b, world, SHARD, F32);
        let twice = b.kernel(
            "twice",
            SHARD,
            &[F32],
            false,
            "for (int64_t i = begin; i < end; i++) ((float *)args[0])[i] *= 2;",
        );
        let (whole, mine) = (Place::of(gradient), own(gradient, SHARD));
        b.program.train.body = vec![
            exchange(
                CollectiveKind::ReduceScatter { sum, tree: true },
                vec![Part { from: whole, to: mine, elements: SHARD }],
            ),
            launch(twice, &[Arg::At(mine)]),
            exchange(CollectiveKind::AllGather, vec![Part { from: mine, to: whole, elements: SHARD }]),
        ];
        let value = |rank: u64, i: u64| ((rank * 31 + i * 7) % 1000) as f32 * 0.1;
        let seen = each_rank(&b, |device, communicator| {
            let mine: Vec<f32> = (0..all).map(|i| value(communicator.rank(), i)).collect();
            for _ in 0..3 {
                device.write(gradient, 0, bytemuck::cast_slice(&mine))?;
                device.run(EntryKind::Train)?;
            }
            Ok(floats(device, gradient, 0, all as usize))
        });
        let tree = |i: u64| {
            let mut terms: Vec<f32> = (0..world).map(|rank| value(rank, i)).collect();
            while terms.len() > 1 {
                terms = terms.chunks(2).map(|pair| pair.iter().sum()).collect();
            }
            2.0 * terms[0]
        };
        let expected: Vec<f32> = (0..all).map(tree).collect();
        for rank in seen {
            assert!(rank.unwrap() == expected, "world {world}");
        }
    }
}

/// Micro-batch i of rank r adds 10^r · (i + 1) to slot i of what is gathered; slots travel two at a time.
#[test]
fn a_collective_has_its_turns_and_its_slots() {
    let mut b = Builder::new();
    across(&mut b, 2);
    let given = b.buffer("given", F32, 4, 4, Role::Inner);
    let taken = b.buffer("taken", F32, 8, 4, Role::Inner);
    let fill = b.kernel("fill", 1, &[F32], true, "*(float *)args[0] += (float)(int64_t)args[1];");
    let slot = |buffer, add| Place { turn: true, add, ..Place::of(buffer) };
    let part = |add| Part { from: slot(given, add), to: slot(taken, add), elements: 4 };
    let gather = dspc_program::Instruction {
        when: Some(When::each(Over::Turns, 2, 1)),
        ..exchange(CollectiveKind::AllGather, vec![part(3), part(0)])
    };
    let mut once = launch(fill, &[Arg::At(slot(given, 0)), Arg::Turn]);
    once.when = Some(When { except: true, ..When::each(Over::Turns, 4, 2) });
    b.program.train.body = vec![repeat(Over::Turns, 4, false, vec![once, gather])];
    let seen = each_rank(&b, |device, communicator| {
        for turn in 0..4 {
            device.write(given, turn, bytemuck::bytes_of(&(100.0 * communicator.rank() as f32)))?;
        }
        device.run(EntryKind::Train)?;
        Ok((0..4).flat_map(|turn| floats(device, taken, turn, 8)).collect::<Vec<_>>())
    });
    for rank in seen {
        let rank = rank.unwrap();
        for (turn, added) in [0.0, 1.0, 0.0, 3.0].into_iter().enumerate() {
            let slot = &rank[8 * turn..8 * turn + 8];
            assert_eq!(slot, [added, 0.0, 0.0, 0.0, 100.0 + added, 0.0, 0.0, 0.0], "turn {turn}");
        }
    }
}

/// An endless exchange, so that a rank that is gone is missed at once.
fn endless(world: u64) -> Builder {
    let mut b = Builder::new();
    across(&mut b, world);
    let x = b.buffer("x", F32, 4 * world, 1, Role::Inner);
    let gather = Part { from: own(x, 4), to: Place::of(x), elements: 4 };
    b.program.train.body = vec![repeat(
        Over::MicroBatches,
        1 << 40,
        false,
        vec![exchange(CollectiveKind::AllGather, vec![gather])],
    )];
    b
}

#[test]
fn a_rank_that_fails_or_panics_ends_all_others_with_its_cause() {
    let b = endless(4);
    let seen = each_rank(&b, |device, communicator| match communicator.rank() {
        2 => Err(Error::PromptEmpty),
        _ => device.run(EntryKind::Train),
    });
    for (rank, result) in seen.into_iter().enumerate() {
        let text = result.unwrap_err().to_string();
        let expected = if rank == 2 {
            "the prompt is empty"
        } else {
            "rank 2 failed: error[R0605]: the prompt is empty"
        };
        assert_eq!(text, expected);
    }
    let seen = each_rank(&b, |device, communicator| {
        if communicator.rank() == 1 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            panic!("on purpose");
        }
        device.run(EntryKind::Train)
    });
    for result in seen {
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "rank 1 failed: it panicked: on purpose");
        assert_eq!((error.code(), error.exit_code()), ("R0801", 8));
    }
}

#[test]
fn one_who_leaves_from_outside_ends_a_run_too() {
    let b = endless(3);
    let seen = each_rank(&b, |device, communicator| {
        if communicator.rank() == 0 {
            communicator.abort(&Cause { rank: 7, what: "the machine goes down".into() });
        }
        device.run(EntryKind::Train)
    });
    for result in seen {
        assert_eq!(result.unwrap_err().to_string(), "rank 7 failed: the machine goes down");
    }
}

#[test]
fn what_the_host_says_reaches_all() {
    let b = endless(3);
    let seen = each_rank(&b, |_, communicator| {
        let rank = communicator.rank();
        let mine = vec![rank as u8; rank as usize];
        let all = communicator.all_gather(&mine)?;
        let first = communicator.broadcast(2, &mine)?;
        let gathered = communicator.gather(1, &mine)?;
        communicator.barrier()?;
        Ok((all, first, gathered.len()))
    });
    for (rank, result) in seen.into_iter().enumerate() {
        let (all, first, gathered) = result.unwrap();
        assert_eq!(all, [vec![], vec![1], vec![2, 2]]);
        assert_eq!(first, [2, 2]);
        assert_eq!(gathered, if rank == 1 { 3 } else { 0 });
    }
}

#[test]
fn a_program_of_another_world_is_refused() {
    let b = endless(4);
    let dir = tempfile::tempdir().unwrap();
    let error = Cpu::new(&b.program, &b.compile(dir.path()), 1).map(|_| ()).unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("R0802", 7));
    assert!(error.remedy().contains("--ranks 4"), "{}", error.remedy());
}

#[test]
fn collectives_that_do_not_fit_are_refused() {
    let refuse = |change: &dyn Fn(&mut Builder)| {
        let mut b = endless(2);
        change(&mut b);
        let error = each_rank(&b, |_, _| Ok(())).swap_remove(0).unwrap_err();
        error.to_string()
    };
    let sole = |b: &mut Builder, change: &dyn Fn(&mut Collective)| {
        let Action::Loop { body, .. } = &mut b.program.train.body[0].action else { panic!() };
        let Action::Collective(collective) = &mut body[0].action else { panic!() };
        change(collective);
    };
    let past = refuse(&|b| sole(b, &|c| c.parts[0].elements = 1 << 20));
    assert!(past.contains("reaches past `x`"), "{past}");
    let group = refuse(&|b| sole(b, &|c| c.group = 3));
    assert!(group.contains("a collective of no group"), "{group}");
    let types = refuse(&|b| {
        let other = b.buffer("other", Bf16, 64, 1, Role::Inner);
        sole(b, &|c| c.parts[0].to = Place::of(other));
    });
    assert!(types.contains("between element types"), "{types}");
    let sum = refuse(&|b| {
        let sum = add_up(b, 3, 4, F32);
        sole(b, &|c| c.kind = CollectiveKind::ReduceScatter { sum, tree: true });
    });
    assert!(sum.contains("does not add up 2 shards"), "{sum}");
    let when = refuse(&|b| b.program.train.body[0].when = Some(When::each(Over::Turns, 0, 0)));
    assert!(when.contains("turns that there are none of"), "{when}");
}

#[test]
fn a_shard_is_zeroed_alone() {
    let mut b = Builder::new();
    across(&mut b, 2);
    let x = b.buffer("x", F32, 8, 1, Role::Inner);
    let touch = b.kernel("touch", 1, &[F32], false, "");
    b.program.train.body = vec![instruction(Action::Zero { at: own(x, 4) }), launch(touch, &[at(x)])];
    let seen = each_rank(&b, |device, _| {
        device.write(x, 0, bytemuck::cast_slice(&[1f32; 8]))?;
        device.run(EntryKind::Train)?;
        Ok(floats(device, x, 0, 8))
    });
    let seen: Vec<_> = seen.into_iter().map(Result::unwrap).collect();
    assert_eq!(seen[0], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    assert_eq!(seen[1], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
}
