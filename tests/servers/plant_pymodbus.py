"""A plant of pymodbus servers, by default 20 devices of 100 registers. See plant_common.py for values and commands."""

import asyncio
import os
import signal
import threading

import plant_common as common
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice


class Server(ModbusTcpServer):
    """Remembers its connections, so that a killed device drops them as one without power does."""

    handlers = ()

    def callback_new_connection(self):
        handler = super().callback_new_connection()
        self.handlers = [*(h for h in self.handlers if h.transport), handler]
        return handler


class Plant:
    def __init__(self, args):
        self.args = args
        self.journal = common.Journal(args.devices, args.journal)
        self.muted = set()
        self.servers = [None] * args.devices
        self.ports = [0] * args.devices

    def device(self, index):
        async def action(_function, start, address, count, registers, values):
            if index in self.muted:
                await asyncio.Event().wait()
            if values is not None:
                self.journal.write(index)
                return
            n = self.journal.read(index, address, count, self.args.mode)
            for register in range(address, address + count):
                registers[register - start] = (n + common.offset(index, register)) % 65536

        block = SimData(0, count=self.args.registers, values=0, datatype=DataType.REGISTERS)
        return SimDevice(id=1, simdata=[block], action=action)

    async def start(self, index):
        if self.servers[index] is not None:
            raise ValueError("it is running")
        server = Server(self.device(index), address=("127.0.0.1", self.ports[index]))
        await server.serve_forever(background=True)
        self.ports[index] = server.transport.sockets[0].getsockname()[1]
        self.servers[index] = server

    async def kill(self, index):
        if self.servers[index] is None:
            raise ValueError("it is not running")
        server, self.servers[index] = self.servers[index], None
        handlers = server.handlers
        await server.shutdown()
        for handler in handlers:
            handler.close()


async def main():
    args = common.arguments(__doc__)
    plant = Plant(args)
    for index in range(args.devices):
        await plant.start(index)
    loop = asyncio.get_running_loop()

    def act(name, index):
        if name == "kill":
            asyncio.run_coroutine_threadsafe(plant.kill(index), loop).result(5)
        elif name == "revive":
            asyncio.run_coroutine_threadsafe(plant.start(index), loop).result(5)
        elif name == "mute":
            plant.muted.add(index)
        elif name == "unmute":
            plant.muted.discard(index)
        else:
            raise ValueError(f"no such command: {name}")

    done = loop.create_future()

    def commands():
        common.serve_commands(plant.ports, args, plant.journal, act)
        loop.call_soon_threadsafe(done.set_result, None)

    loop.add_signal_handler(signal.SIGUSR1, lambda: common.say(plant.journal.statistics()))
    threading.Thread(target=commands, daemon=True).start()
    await done
    # Muted requests wait for ever; nothing here is worth closing in order.
    os._exit(0)


asyncio.run(main())
