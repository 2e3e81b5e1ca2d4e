"""Pictures small enough to stand in the documentation, so that its examples run as they stand."""

MUG = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAQAAAAEAAgMAAAAhHED1AAAADFBMVEXe4uageFDIPDJ4Hh7K4ZVqAAABi0lEQVR4"
    "2u2XMU7DQBBFh8WFCyQqepcWFQfgGo44zh4HYYocIZdASuk+FJSWHHlSpAC8643XH7LS6v8qWXtefmbGu2MRiqIo"
    "iqIoiqIoiqIoiqIoKg+pqqrusPDViHv9oSMYv4JwqxN9zd5qvKvPjiPQQMCC18HdoqUA4MljamULXG4Gg7br/wB2"
    "C9dmAZ6aaZSD46KlAMCT8m1cEj+nC0NkFXQb/n65jMOvCH2P74Oh/f58CMRLMXulleYcHt7RisC1Nl0r5wt4s6iD"
    "R4v+hRoFGIsmsUYBBi6jRQE1CjDpW9migAoAbERESsTBiycgCjDCD1PnZjEO0KMORrcMBnwUVnRiCQG65Nt670Rc"
    "28GYwdlop83E+YAAtnIagEnuoHR2tWs7qP4gB33Sw9W4x6OJLQLmoAJHHIMOWa+e0zHqpcs3Z0X3QZd82EZbeUQB"
    "+9QvXfCMtEeHbfRxdg1I0SyMfWhEDh/u3UXE77c83gkggAACsgfcNMwBAQQQQAABBBBAAAEEEEBAxoATt+WhbCma"
    "fRUAAAAASUVORK5CYII="
)
"""A mug on a table, drawn in four colours; 256 pixels square."""

WHERE_THE_MUG_IS = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAQAAAAEAAQAAAAB0CZXLAAAAOElEQVR42u3LIQ7AIADAwIaX7+fgMTMISO50WwAA"
    "cMLcfVWNv08gEAgEAoFAIBAIBALB0wEAXGIBrV4SaHHfRJ0AAAAASUVORK5CYII="
)
"""A mask of the same size: white where the mug is."""
