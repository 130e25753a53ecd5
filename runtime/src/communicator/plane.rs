//! A collective between ranks that read one another's memory: what each copies or adds up, between the two gates of its communicator.

use super::{Exchange, Kind, Team};
use crate::error::Error;

/// Does this rank's part. `peer` gives the address of a member's range: rank, arena, first byte, bytes.
///
/// # Errors
/// What `peer` says.
pub(super) fn exchange(
    team: &Team,
    exchange: &Exchange<'_>,
    sum: &mut dyn FnMut(&[*mut u8]),
    peer: &dyn Fn(u64, u32, usize, usize) -> Result<*mut u8, Error>,
) -> Result<(), Error> {
    match exchange.kind {
        Kind::ReduceScatter { .. } => reduce_scatter(team, exchange, sum, peer),
        Kind::AllGather => all_gather(team, exchange, peer),
    }
}

/// Every member's shard, added up by the program's kernel into this rank's.
fn reduce_scatter(
    team: &Team,
    exchange: &Exchange<'_>,
    sum: &mut dyn FnMut(&[*mut u8]),
    peer: &dyn Fn(u64, u32, usize, usize) -> Result<*mut u8, Error>,
) -> Result<(), Error> {
    let mut operands = Vec::with_capacity(team.members.len() + 1);
    for piece in exchange.pieces {
        operands.clear();
        for (index, &member) in team.members.iter().enumerate() {
            let offset = piece.from.offset(index) + team.index * piece.bytes;
            operands.push(peer(member, piece.from.arena, offset, piece.bytes)?);
        }
        operands.push(std::ptr::with_exposed_provenance_mut(piece.to.address));
        sum(&operands);
    }
    Ok(())
}

/// Every other member's shard, copied to its place.
fn all_gather(
    team: &Team,
    exchange: &Exchange<'_>,
    peer: &dyn Fn(u64, u32, usize, usize) -> Result<*mut u8, Error>,
) -> Result<(), Error> {
    for piece in exchange.pieces {
        // From the neighbour on, so that not all read the same memory at once.
        for step in 0..team.members.len() {
            let index = (team.index + step) % team.members.len();
            let from = peer(team.members[index], piece.from.arena, piece.from.offset(index), piece.bytes)?;
            let to = std::ptr::with_exposed_provenance_mut::<u8>(piece.to.address + index * piece.bytes);
            if !std::ptr::eq(from, to) {
                // SAFETY: both lie in arenas that are kept; between the gates nobody writes a shard that is given, and nobody but this
                // rank touches its own result. A rank's own shard lies where it belongs or is apart.
                unsafe { std::ptr::copy(from, to, piece.bytes) };
            }
        }
    }
    Ok(())
}
