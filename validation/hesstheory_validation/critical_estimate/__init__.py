"""K*: when does probe noise equal batch noise?"""
