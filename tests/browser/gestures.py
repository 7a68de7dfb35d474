"""What a hand does: a mouse's drag, a finger's swipe."""


def drag(mouse, start, end):
    mouse.move(*start)
    mouse.down()
    mouse.move(*end, steps=5)
    mouse.up()


def swipe(opened, start, end):
    """A finger's way; Playwright itself can only tap."""
    session = opened.context.new_cdp_session(opened.page)
    middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
    touches = [("touchStart", start), ("touchMove", middle), ("touchMove", end), ("touchEnd", None)]
    for kind, place in touches:
        points = [dict(zip("xy", place, strict=True))] if place else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.detach()
