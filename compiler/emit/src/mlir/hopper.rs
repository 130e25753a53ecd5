//! What Hopper adds: barriers in shared memory, copies by tensor map, products of a warpgroup.
//!
//! Addresses in shared memory are `i32` here, as the instructions take them. A warpgroup is four warps; its products run beside it until
//! [`Function::await_products`], which takes the accumulators and gives them back: nothing that reads them can move before it.

use super::assembly::first_input;
use super::builder::Function;
use super::gpu::INT;
use super::types::{Element, Space, Type, Value};

const F32: Type = Type::scalar(Element::F32);

/// A matrix in shared memory as a product reads it: 128-byte rows, swizzled, at a boundary of 1024 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedMatrix {
    /// Its descriptor, by [`Function::descriptor`].
    pub descriptor: Value,
    /// Rows of 128 bytes before the next 64 columns begin.
    pub rows: u32,
    /// Which of its directions is summed over.
    pub summed: Summed,
}

/// Which direction of a matrix in shared memory a product sums over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Summed {
    /// Columns, which lie side by side.
    Columns,
    /// Rows.
    Rows,
}

/// The left factor of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Factor<'v> {
    /// 64 rows of a matrix in shared memory.
    Shared(SharedMatrix),
    /// Pairs of 16-bit numbers, four registers for each 16 columns.
    Registers(&'v [Value]),
}

/// What a product adds to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Onto<'v> {
    /// Nothing.
    Zero,
    /// These accumulators.
    Sum(&'v [Value]),
}

/// Sizes of a product and its numbers' type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// Columns of the result, at most 256.
    pub columns: u32,
    /// Terms of each sum, a multiple of 16.
    pub depth: u32,
    /// `bf16` or `f16`.
    pub element: Element,
}

/// How a warpgroup's share of registers changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Registers {
    /// To more.
    Increase(u32),
    /// To fewer.
    Decrease(u32),
}

impl SharedMatrix {
    /// What is added to the descriptor for the `i`-th 16 terms.
    fn step(&self, i: u32) -> u32 {
        match self.summed {
            Summed::Columns => i / 4 * self.rows * 8 + i % 4 * 2,
            Summed::Rows => i * 16 * 8,
        }
    }

    fn transposed(&self) -> u32 {
        u32::from(self.summed == Summed::Rows)
    }
}

impl Function {
    /// Where the block's dynamic shared memory begins.
    pub fn dynamic_shared(&mut self, symbol: &str) -> Value {
        let at = self.address_in(Space::Shared, symbol);
        self.number_of_address(at)
    }

    /// The number of the warp's first lane: one that the assembler knows to be the same in all lanes.
    pub fn of_first_lane(&mut self, x: Value) -> Value {
        let (all, first, clamp) = (self.int(INT, -1), self.int(INT, 0), self.int(INT, 31));
        self.value(INT, format!("nvvm.shfl.sync idx {all}, {x}, {first}, {clamp} : i32 -> i32"))
    }

    /// Makes a barrier that `arrivals` complete.
    pub fn barrier_new(&mut self, at: Value, arrivals: u32) {
        let arrivals = self.int(INT, arrivals.into());
        self.assembly("mbarrier.init.shared::cta.b64 [$0], $1;", &[], &[], &[at, arrivals]);
    }
    /// Shows new barriers to the copy engine; all threads of the block meet after it.
    pub fn barriers_ready(&mut self) {
        self.assembly("fence.mbarrier_init.release.cluster;", &[], &[], &[]);
        self.assembly("fence.proxy.async.shared::cta;", &[], &[], &[]);
        self.meet();
    }
    /// All threads of the block meet.
    pub fn meet(&mut self) {
        self.assembly("bar.sync 0;", &[], &[], &[]);
    }
    /// So many threads meet at the block's barrier of this number.
    pub fn meet_at(&mut self, number: u32, threads: u32) {
        self.assembly(&format!("bar.sync {number}, {threads};"), &[], &[], &[]);
    }
    /// Counts among the threads that meet at a barrier, without waiting for them.
    pub fn pass_by(&mut self, number: u32, threads: u32) {
        self.assembly(&format!("bar.arrive {number}, {threads};"), &[], &[], &[]);
    }
    /// Waits for the end of the barrier's phase of this parity.
    pub fn barrier_wait(&mut self, at: Value, parity: Value) {
        let text = "{ .reg .pred done; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1; @done bra READY; bra AGAIN; READY: }";
        self.assembly(text, &[], &[], &[at, parity]);
    }
    /// One arrival.
    pub fn barrier_arrive(&mut self, at: Value) {
        self.assembly("mbarrier.arrive.shared::cta.b64 _, [$0];", &[], &[], &[at]);
    }
    /// One arrival, and so many bytes to come.
    pub fn barrier_expect(&mut self, at: Value, bytes: u32) {
        let bytes = self.int(INT, bytes.into());
        self.assembly("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", &[], &[], &[at, bytes]);
    }

    /// Starts copying a tile by its map; coordinates innermost first. The barrier gets its bytes.
    pub fn copy_tile(&mut self, map: Value, at: &[Value], to: Value, barrier: Value) {
        let to = self.shared_at(to, 0);
        let to = self.value(to.ty, format!("llvm.addrspacecast {to} : !llvm.ptr<3> to !llvm.ptr<7>"));
        let barrier = self.shared_at(barrier, 0);
        let at: Vec<String> = at.iter().map(Value::to_string).collect();
        self.line(format!(
            "nvvm.cp.async.bulk.tensor.shared.cluster.global {to}, {map}, {barrier}, box [{}] : !llvm.ptr<7>, !llvm.ptr",
            at.join(", ")
        ));
    }
    /// Starts copying bytes, a multiple of 16 on such boundaries. The barrier gets them.
    pub fn copy_bytes(&mut self, from: Value, bytes: u32, to: Value, barrier: Value) {
        let text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];";
        let bytes = self.int(INT, bytes.into());
        self.assembly(text, &[], &[], &[to, from, bytes, barrier]);
    }

    /// Takes or gives registers; every warp of the warpgroup does it.
    pub fn change_registers(&mut self, registers: Registers) {
        self.line(match registers {
            Registers::Increase(n) => format!("nvvm.setmaxregister increase {n}"),
            Registers::Decrease(n) => format!("nvvm.setmaxregister decrease {n}"),
        });
    }

    /// The descriptor of a matrix that begins at an address; `rows` as in [`SharedMatrix`].
    pub fn descriptor(&mut self, at: Value, rows: u32) -> Value {
        let at = self.shr(at, 4);
        let at = self.zero_extend(at, Element::I64);
        // 128-byte swizzle; 8 rows are 1024 bytes; 64 columns are `rows` rows.
        let rest = (1i64 << 62) | (64i64 << 32) | (i64::from(rows * 8) << 16);
        let rest = self.int(at.ty, rest);
        self.or(at, rest)
    }

    /// Starts `onto + left · right` for a warpgroup: 64 rows. Products started since the last call are one group.
    ///
    /// A thread's accumulators: of row 16 · warp + lane / 4 + 8h and column 8j + 2 (lane % 4) + e, number 4j + 2h + e.
    pub fn product(
        &mut self,
        p: Product,
        left: Factor<'_>,
        right: SharedMatrix,
        onto: Onto<'_>,
    ) -> Vec<Value> {
        let count = (p.columns / 2) as usize;
        let (updated, fresh) = match onto {
            Onto::Zero => (vec![], vec![F32; count]),
            Onto::Sum(sums) => (sums.to_vec(), vec![]),
        };
        let first = first_input(updated.len(), fresh.len());
        let mut inputs = vec![right.descriptor];
        match left {
            Factor::Shared(left) => inputs.push(left.descriptor),
            Factor::Registers(left) => inputs.extend(left),
        }
        let sums: Vec<String> = (0..count).map(|i| format!("${i}")).collect();
        let sums = sums.join(", ");
        let mut text = "{ .reg .pred keep; .reg .b64 a, b; wgmma.fence.sync.aligned; ".to_string();
        for i in 0..p.depth / 16 {
            let keep = u32::from(i > 0 || fresh.is_empty());
            text += &format!("setp.ne.b32 keep, {keep}, 0; add.s64 b, ${first}, {}; ", right.step(i));
            let (a, transposed) = match left {
                Factor::Shared(left) => {
                    text += &format!("add.s64 a, ${}, {}; ", first + 1, left.step(i));
                    ("a".to_string(), format!("{}, ", left.transposed()))
                }
                Factor::Registers(_) => {
                    let at = first + 1 + i as usize * 4;
                    (format!("{{${at}, ${}, ${}, ${}}}", at + 1, at + 2, at + 3), String::new())
                }
            };
            text += &format!(
                "wgmma.mma_async.sync.aligned.m64n{}k16.f32.{e}.{e} {{{sums}}}, {a}, b, keep, 1, 1, {transposed}{}; ",
                p.columns,
                right.transposed(),
                e = p.element,
            );
        }
        text += "wgmma.commit_group.sync.aligned; }";
        self.assembly(&text, &updated, &fresh, &inputs)
    }

    /// Waits until at most `pending` groups of products run; gives the accumulators of those that ended.
    pub fn await_products(&mut self, pending: u32, sums: &[Value]) -> Vec<Value> {
        self.assembly(&format!("wgmma.wait_group.sync.aligned {pending};"), sums, &[], &[])
    }

    /// Waits for all products, but not before `witness`, which is never below 0, is known; gives the accumulators, and `others` as they are.
    ///
    /// The assembler moves a wait up to where nothing between needs it, past work that was to be done meanwhile. It does not move one past
    /// a pause, and whether this one pauses is only known with the witness.
    pub fn await_products_after(
        &mut self,
        witness: Value,
        sums: &[Value],
        others: &[Value],
    ) -> (Vec<Value>, Vec<Value>) {
        let updated = [sums, others].concat();
        let at = first_input(updated.len(), 0);
        let text = format!(
            "{{ .reg .pred never; setp.lt.f32 never, ${at}, 0fBF800000; @never nanosleep.u32 1; wgmma.wait_group.sync.aligned 0; }}"
        );
        let mut all = self.assembly(&text, &updated, &[], &[witness]);
        let others = all.split_off(sums.len());
        (all, others)
    }
}
