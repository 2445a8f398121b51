def show(rows):
    pass


def draw(rows):
    pass
