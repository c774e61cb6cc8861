"""What goes wrong: each misfortune happens to a world now, and heals by itself later.  It says whether it could happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim.disk import FAILPOINTS, OFTEN

if TYPE_CHECKING:
    from sim.world import World


def kill(world: World) -> bool:
    if not world.broker_lives:
        return False
    world.die(power=False)
    world.start_later()
    return True


def power_loss(world: World) -> bool:
    if not world.broker_lives:
        return False
    world.die(power=True)
    world.start_later()
    return True


def arm(world: World) -> bool:
    if world.disk.armed in OFTEN:
        return False
    world.disk.armed = world.rng.choice((*FAILPOINTS, *OFTEN, "before sync", "before sync"))
    world.disk.error_instead = world.rng.random() < (0.7 if world.disk.armed == "before sync" else 0.25)
    world.trace("world", f"armed {world.disk.armed}{' with an error' if world.disk.error_instead else ''}")
    return True


def stop_cleanly(world: World) -> bool:
    node = world.machine.node
    if not world.broker_lives or not node.ready:
        return False
    world.stopping = True
    world.trace("world", "the broker is told to stop")
    world.machine.process.spawn(world.stop())
    return True


def freeze_broker(world: World) -> bool:
    process = world.machine.process
    if not world.broker_lives or process.frozen:
        return False
    world.trace("world", "the broker is frozen")
    process.freeze()
    world.later(world.rng.choice([0.3, 1.4, 4.0, 25.0]), process.thaw)
    return True


def jump(world: World) -> bool:
    jump_ms = world.rng.choice([900, 20_000, 70_000, 3_600_000, 86_400_000, -900, -20_000, -70_000, -3_600_000])
    world.trace("world", f"the clock jumps by {jump_ms} ms")
    world.clock.jump(jump_ms)
    return True


def fill(world: World) -> bool:
    if world.disk.room is not None:
        return False
    world.disk.room = world.rng.choice([0, 300, 2_000, 10_000])
    world.trace("world", f"the disk has {world.disk.room} bytes left")
    world.later(world.rng.uniform(0.5, 15.0), world.free)
    return True


def break_off(world: World) -> bool:
    clients = [client for client in world.clients() if client.process.alive]
    if not clients:
        return False
    client = world.rng.choice(clients)
    world.trace("world", f"the connection of {client.name} breaks")
    world.network.break_off(client.process)
    getattr(client, "worker", client).trouble()
    return True


def isolate(world: World) -> bool:
    client = world.rng.choice([*world.producers, *world.callers, *world.workers])
    if not client.process.alive:
        return False
    world.trace("world", f"{client.name} is cut off")
    world.network.isolate(client.process)
    client.trouble()

    def reach() -> None:
        world.network.reach(client.process)
        client.trouble()

    world.later(world.rng.uniform(1.0, 30.0), reach)
    return True


def freeze_worker(world: World) -> bool:
    worker = world.any_worker()
    if worker is None or worker.process.frozen:
        return False
    world.trace("world", f"{worker.name} is frozen")
    worker.freeze()
    world.later(world.rng.choice([1.0, 6.0, 20.0, 40.0]), worker.thaw)
    return True


def block_worker(world: World) -> bool:
    """One with a keeper, which goes on to speak for it, and rather one that waits for tasks: it reads what it is given when that is lost already."""
    workers = [each for each in world.workers if each.process.alive and not each.process.frozen and not each.stopped and each.keeper is not None]
    if not workers:
        return False
    worker = min(workers, key=lambda each: (len(each.runs), each.concurrency))
    world.trace("world", f"the loop of {worker.name} is blocked")
    worker.block()
    world.later(world.rng.choice([2.0, 8.0, 30.0, 40.0]), worker.thaw)
    return True


def choke(world: World) -> bool:
    """A worker does not read for a while."""
    worker = world.any_worker()
    ends = world.network.of(worker.process) if worker is not None else []
    if not ends or ends[0].peer.protocol is None:
        return False
    peer = ends[0].peer
    world.trace("world", f"{worker.name} does not read")
    peer.process.soon(peer.protocol.pause_writing)
    world.later(world.rng.uniform(0.1, 4.0), lambda: peer.process.soon(peer.protocol.resume_writing))
    return True


def spoil(world: World) -> bool:
    """What is said next to a worker or by it is lost or comes twice, and the connection stays."""
    worker = world.any_worker()
    ends = world.network.of(worker.process) if worker is not None else []
    if worker is None or not ends:
        return False
    end, times = world.rng.choice([ends[0], ends[0].peer]), world.rng.choice([0, 0, 2])
    world.trace("world", f"the next frames {'of' if end is ends[0] else 'for'} {worker.name} arrive {times} times")
    worker.trouble()
    end.times = times
    return True


def lose_worker(world: World) -> bool:
    worker = world.any_worker()
    if worker is None:
        return False
    silently = world.rng.random() < 0.3
    world.trace("world", f"{worker.name} dies{' with its machine' if silently else ''}")
    worker.die(silently=silently)
    world.later(world.rng.uniform(0.1, 6.0), world.hire)
    return True


def dismiss(world: World) -> bool:
    worker = world.any_worker()
    if worker is None or worker.process.frozen:
        return False
    world.trace("world", f"{worker.name} leaves")
    worker.leave()
    world.later(world.rng.uniform(0.1, 6.0), world.hire)
    return True


def stale_reports(world: World) -> bool:
    """All workers say again what they have said."""
    for worker in world.workers:
        worker.process.soon(worker.report_again)
    return True


# what happens, how often in proportion, and how
MISFORTUNES: dict[str, tuple[int, Callable[[World], bool]]] = {
    "kill": (3, kill),
    "power loss": (3, power_loss),
    "failpoint": (6, arm),
    "clean stop": (2, stop_cleanly),
    "broker frozen": (2, freeze_broker),
    "disk full": (2, fill),
    "clock jump": (4, jump),
    "connection broken": (6, break_off),
    "client cut off": (2, isolate),
    "worker frozen": (3, freeze_worker),
    "worker blocked": (4, block_worker),
    "worker does not read": (2, choke),
    "frames spoilt": (4, spoil),
    "worker dies": (4, lose_worker),
    "worker leaves": (2, dismiss),
    "stale report": (5, stale_reports),
}
