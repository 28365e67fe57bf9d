"""Damage to files: flipped bits, cuts, doubled and zeroed stretches, numbers in headers."""

import random


def mutated(data: bytes, rng: random.Random) -> bytes:
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not content:
            break
        place = rng.randrange(len(content))
        head = rng.randrange(min(len(content), 128))
        match rng.randrange(7):
            case 0:
                content[place] ^= 1 << rng.randrange(8)
            case 1:
                del content[place:]
            case 2:
                content[head] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 3:
                content[head : head + 4] = rng.randbytes(4)
            case 4:
                content[place : place + 20] = bytes(len(content[place : place + 20]))
            case 5:
                content[place:place] = content[place : place + rng.randrange(200)]
            case 6:
                content[place : place + 8] = rng.randbytes(8)
    return bytes(content)
