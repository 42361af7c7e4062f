"""How training goes: losses by epoch, gradient norms, and the size and direction of updates.

Both are told what happened, and are printed:

    history, monitor = History(), Monitor(model)
    for epoch in range(epochs):
        for batch in batches:
            step(batch)                 # backward and optimizer.step(), recorded or compiled
            monitor.observe()
        history.add(training_loss, validation_loss, recall=recall)
    print(history)
    print(monitor)
"""

from .findings import Finding
from .history import History
from .monitor import Monitor

__all__ = ["Finding", "History", "Monitor"]
