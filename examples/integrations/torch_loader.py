"""
PyTorch: a DataLoader whose workers are not forks of the program.
"""

import threading

import torch
from torch.utils.data import DataLoader, Dataset

import safespawn


class Squares(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return torch.tensor([index, index * index])


def main():
    threading.Thread(target=threading.Event().wait, daemon=True).start()  # with threads there is no safe fork any more
    context = safespawn.get_context()
    for persistent in (False, True):
        loader = DataLoader(
            Squares(), batch_size=8, num_workers=2, multiprocessing_context=context, persistent_workers=persistent
        )
        for _ in range(2):
            print("sum:", sum(int(batch[:, 1].sum()) for batch in loader))
        del loader


if __name__ == "__main__":
    main()
