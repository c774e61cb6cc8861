"""The worker: a keeper (parent, no user code) and a runner (child: connection and user code).

keeper    starts the runner, renews its leases, ends what hangs, tells its death      launch   the runner as a process
runner    a worker session: deliveries in, reports and credit out                     stall    what is read after a stall is checked first
workbench the one FIFO and the pools: steps (async), threads, process and child       reports  outcomes into the fewest frames
registry  what a task type is      job  one delivered task      context  what a function can ask      page  memory that both processes share
"""
